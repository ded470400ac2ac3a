# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Where a decoder's positions come from: one class a method, ALiBi first, one table last. Travels to the Hub.

A method answers through three hooks, each with a neutral default: ``embed`` changes the embeddings once, ``rotate``
changes queries and keys in every layer, ``bias`` is added to the scores. Adding a method is one class, one line in
``POSITION_METHODS`` and one row in its test.

Shapes: B batch (or 1, where all rows agree), H heads, Q queries, K keys, D hidden size, d head size.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .alibi import alibi_slopes, scale_slopes
from .tensor_parallel import heads_of_rank


class PositionMethod(nn.Module):
    """No position information, and the contract of those that have some.

    Attributes:
        has_bias: Whether ``bias`` returns a tensor.
        bias_differs_by_layer: Whether every layer needs a bias of its own.
        head_mesh: Under tensor parallelism, the ranks over which heads are split.
    """

    has_bias: ClassVar[bool] = False
    bias_differs_by_layer: bool = False
    head_mesh: Any | None = None

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Raise a ValueError where this method cannot work with the sizes of ``config``."""

    def init_weights(self) -> None:
        """Fill parameters and buffers from the config; also called for a model that was built without memory."""

    def embed(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        """Embeddings ``(B, Q, D)`` of tokens at positions ``(B, Q)``, with what the method adds to them."""
        return inputs_embeds

    def rotate(self, query: Tensor, key: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Queries ``(B, H, Q, d)`` and keys ``(B, H_kv, Q, d)`` of one layer, turned by their positions ``(B, Q)``."""
        return query, key

    def bias(
        self, layer_idx: int, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype
    ) -> Tensor | None:
        """What a layer adds to its scaled scores before the softmax.

        Args:
            layer_idx: The layer, from 0.
            query_positions: ``(B, Q)`` int64, tokens.
            key_positions: ``(B, K)`` int64, tokens.
            dtype: float32, or float64 in a float64 model.

        Returns:
            ``(B, H, Q, K)`` of ``dtype``, nats; None where the method has no bias.
        """
        return None

    def query_slopes(self, layer_idx: int, query_positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Where a layer's bias is ``-slope * distance``: the slopes of queries at positions ``(B, Q)``.

        Returns:
            ``(1 or B, 1 or Q, H)`` of ``dtype``, nats per token; None where the bias is no such thing.
        """
        return None

    def forward(self, hook: str, *args: Any) -> Any:
        """A hook by name: what offloads or shards weights brings them back where a module is called.

        Parameters of ``embed`` and ``rotate`` belong into submodules, which are called too.
        """
        return getattr(self, hook)(*args)


class LayerBias:
    """The bias of one layer, for attention to ask for."""

    def __init__(self, method: PositionMethod, layer_idx: int) -> None:
        self.method, self.layer_idx = method, layer_idx

    def dense(self, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype) -> Tensor:
        """``(B, H, Q, K)`` of ``dtype``, nats."""
        return self.method("bias", self.layer_idx, query_positions, key_positions, dtype)

    def slopes(self, query_positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """``(1 or B, 1 or Q, H)``, nats per token, where the bias is ``-slope * distance``; else None."""
        return self.method("query_slopes", self.layer_idx, query_positions, dtype)

    @property
    def tolerance(self) -> float:
        """Largest weight that a query may lose."""
        return self.method.config.alibi_tolerance


class AlibiPositions(PositionMethod):
    """ALiBi: a penalty on distance, one slope a head (Press et al. 2022, arXiv:2108.12409, section 3).

    Slopes stay float32 whatever the model's dtype: they are not powers of two for most head counts, and bfloat16 would
    round them by up to 0.4 %. What trains is their logarithm, so that a slope stays positive. The names of these
    parameters hold the word ``bias``, by which Trainer spares them from weight decay, a pull towards beta = 1.
    """

    has_bias = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.trainable = config.alibi_trainable
        self.bias_differs_by_layer = self.trainable != "none"
        self.slopes = nn.Buffer(torch.empty(config.num_attention_heads, dtype=torch.float32), persistent=False)
        if self.trainable == "beta":
            self.bias_log_beta = nn.Parameter(torch.empty(config.num_hidden_layers, dtype=torch.float32))
        elif self.trainable == "slopes":
            shape = (config.num_hidden_layers, config.num_attention_heads)
            self.bias_log_slopes = nn.Parameter(torch.empty(shape, dtype=torch.float32))
        # What the model, and FSDP with it, keeps in float32 when the rest is cast.
        self._keep_in_fp32_modules_strict = [name for name, _ in self.named_parameters()]
        self.init_weights()

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AlibiPositions":
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)


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
        angles = _angles(position_ids, inputs_embeds.shape[-1], 10000.0, _bias_dtype(inputs_embeds))
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1) * self.config.initializer_range
        return inputs_embeds + waves.to(inputs_embeds.dtype)


class LearnedPositions(PositionMethod):
    """A trained vector for each position up to ``train_context_length`` (as in GPT-2). It cannot go further."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.train_context_length, config.hidden_size)

    def embed(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        num_positions = self.embedding.num_embeddings
        if not torch.compiler.is_compiling() and (longest := int(position_ids.max()) + 1) > num_positions:
            raise ValueError(
                f"learned positions end at train_context_length = {num_positions} tokens, got a text of {longest}; "
                "cut the text, or use a position_method that extrapolates, such as alibi"
            )
        return inputs_embeds + self.embedding(position_ids).to(inputs_embeds.dtype)


class RotaryPositions(PositionMethod):
    """RoPE: queries and keys turned by angles that grow with position (Su et al. 2021, arXiv:2104.09864, section 3.2).

    Pairs dimension k with k + d/2, as Llama's checkpoints do.
    """

    @classmethod
    def check_config(cls, config: Any) -> None:
        if config.head_dim % 2:
            raise ValueError(f"rope needs an even head_dim, got {config.head_dim}")

    def rotate(self, query: Tensor, key: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = _angles(position_ids, query.shape[-1], self.config.rope_theta, _bias_dtype(query))[:, None]
        cos, sin = (torch.cat((wave, wave), dim=-1).to(query.dtype) for wave in (angles.cos(), angles.sin()))
        return query * cos + _rotate_half(query) * sin, key * cos + _rotate_half(key) * sin


def _angles(position_ids: Tensor, dim: int, base: float, dtype: torch.dtype) -> Tensor:
    """``(B, Q, dim / 2)``: position times ``base ** (-2k / dim)``."""
    exponents = torch.arange(0, dim, 2, device=position_ids.device, dtype=dtype) / dim
    return position_ids[..., None].to(dtype) * base**-exponents


def _rotate_half(states: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _bias_dtype(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)


POSITION_METHODS: dict[str, type[PositionMethod]] = {
    "alibi": AlibiPositions,
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
    "rope": RotaryPositions,
    "none": PositionMethod,
}
