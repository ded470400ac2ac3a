# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Where a decoder's positions come from: one class a method, ALiBi first, one table last. Travels to the Hub.

A method answers through three hooks, each with a neutral default: ``embed`` changes the embeddings once, ``rotate``
changes queries and keys in every layer, ``bias`` is added to the scores. Adding a method is one class, one line in
``POSITION_METHODS`` and one row in its test.

Shapes: B batch (or 1, where all rows agree), H heads, Q queries, K keys, D hidden size, d head size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .alibi import alibi_slopes, scale_slopes
from .position_base import Float32Positions, PositionMethod, bias_dtype, wave_angles
from .position_biases import (
    FirePositions,
    KerplePositions,
    SandwichPositions,
    SharedOffsetPositions,
    T5Positions,
)
from .position_rope import RotaryPositions
from .tensor_parallel import heads_of_rank


class AlibiPositions(Float32Positions):
    """ALiBi: a penalty on distance, one slope a head (Press et al. 2022, arXiv:2108.12409, section 3).

    Slopes stay float32 whatever the model's dtype: they are not powers of two for most head counts, and bfloat16 would
    round them by up to 0.4 %. What trains is their logarithm, so that a slope stays positive. The names of these
    parameters hold the word ``bias``, by which Trainer spares them from weight decay, a pull towards beta = 1.
    """

    reads_alibi_fields = True
    has_bias = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.trainable = config.alibi_trainable
        self.bias_differs_by_layer = self.trainable != "none"
        self.slopes = nn.Buffer(torch.empty(config.num_attention_heads, dtype=torch.float32), persistent=False)
        self.init_weights()

    @classmethod
    def parameter_shapes(cls, config: Any) -> dict[str, tuple[int, ...]]:
        if config.alibi_trainable == "beta":
            return {"bias_log_beta": (config.num_hidden_layers,)}
        if config.alibi_trainable == "slopes":
            return {"bias_log_slopes": (config.num_hidden_layers, config.num_attention_heads)}
        return {}

    def init_weights(self) -> None:
        config = self.config
        multipliers = alibi_slopes(
            config.num_attention_heads,
            kind=config.alibi_slope_kind,
            bias_max=config.alibi_bias_max,
            custom=config.alibi_slopes,
        )
        slopes = config.base_alibi_slopes()
        if self.trainable == "beta":
            init.copy_(self.slopes, multipliers)
            init.copy_(self.bias_log_beta, torch.tensor(config.alibi_beta).float().log().expand_as(self.bias_log_beta))
        else:
            init.copy_(self.slopes, slopes)
        if self.trainable == "slopes":
            init.copy_(self.bias_log_slopes, slopes.log().expand_as(self.bias_log_slopes))

    def layer_slopes(self, layer_idx: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Slopes ``(H,)`` of one layer before ``alibi_scaling``, nats per token; differentiable if they train."""
        if self.trainable == "beta":
            return self.slopes.to(dtype) * self.bias_log_beta[layer_idx].to(dtype).exp()
        if self.trainable == "slopes":
            return self.bias_log_slopes[layer_idx].to(dtype).exp()
        return self.slopes.to(dtype)

    def query_slopes(self, layer_idx: int, query_positions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Slopes as the scores of each query see them, nats per token: ``(1, 1, H)``, or ``(B, Q, H)`` if dynamic.

        A dynamic factor belongs to the query, not to the call: the tokens up to and including the query over the
        training length. So a token's result does not depend on how the text was cut into chunks or cached.

        Under tensor parallelism H are the heads of this rank.
        """
        slopes = self.layer_slopes(layer_idx, dtype)[None, None, :]
        if (scaling := self.config.alibi_scaling) is not None:
            kind, factor = scaling["type"], scaling.get("factor")
            if kind.startswith("dynamic_"):
                kind = kind.removeprefix("dynamic_")
                factor = ((query_positions[..., None] + 1).to(dtype) / self.config.train_context_length).clamp(min=1.0)
            slopes = scale_slopes(slopes, kind, factor)
        if self.config.alibi_bias_inside_scaling:
            slopes = slopes * self.config.scaling
        return heads_of_rank(slopes, self.head_mesh)

    def bias(self, layer_idx: int, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype) -> Tensor:
        slopes = self.query_slopes(layer_idx, query_positions, dtype).transpose(1, 2)[..., None]  # (B, H, Q or 1, 1)
        # The distance is taken before anything is rounded; positions themselves are exact up to 2**24 in float32.
        distance = (query_positions[:, :, None].to(dtype) - key_positions[:, None, :].to(dtype)).abs()
        return -slopes * distance[:, None]


class SinusoidalPositions(PositionMethod):
    """Fixed sines and cosines added to the embeddings (Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

    The paper adds waves of amplitude 1 to embeddings of standard deviation 1 (it multiplies them by ``sqrt(D)``). Here
    embeddings start with ``initializer_range``, so that is the amplitude, and the ratio is the paper's.
    """

    @classmethod
    def check_config(cls, config: Any) -> None:
        if config.hidden_size % 2:
            raise ValueError(f"sinusoidal positions need an even hidden_size, got {config.hidden_size}")

    def embed(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        angles = wave_angles(position_ids, inputs_embeds.shape[-1], 10000.0, bias_dtype(inputs_embeds))
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1) * self.config.initializer_range
        return inputs_embeds + waves.to(inputs_embeds.dtype)


class LearnedPositions(PositionMethod):
    """A trained vector for each position up to ``train_context_length`` (as in GPT-2). It cannot go further."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.train_context_length, config.hidden_size)

    @classmethod
    def parameter_shapes(cls, config: Any) -> dict[str, tuple[int, ...]]:
        return {"embedding.weight": (config.train_context_length, config.hidden_size)}

    def embed(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        num_positions = self.embedding.num_embeddings
        if not torch.compiler.is_compiling() and (longest := int(position_ids.max()) + 1) > num_positions:
            raise ValueError(
                f"learned positions end at train_context_length = {num_positions} tokens, got a text of {longest}; "
                "cut the text, or use a position_method that extrapolates, such as alibi"
            )
        return inputs_embeds + self.embedding(position_ids).to(inputs_embeds.dtype)


POSITION_METHODS: dict[str, type[PositionMethod]] = {
    "alibi": AlibiPositions,
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
    "rope": RotaryPositions,
    "t5": T5Positions,
    "shared_offset": SharedOffsetPositions,
    "kerple": KerplePositions,
    "fire": FirePositions,
    "sandwich": SandwichPositions,
    "none": PositionMethod,
}
