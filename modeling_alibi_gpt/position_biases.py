# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Attention score biases other than ALiBi: T5, shared offset, KERPLE, FIRE and Sandwich. Exported to the Hub.

Parameters stay float32 in a model of any dtype, and biases are computed in float32 even under autocast. Parameters
whose name contains ``bias`` are excluded from weight decay by Trainer, where decay would be meaningless.

Shapes: B batch (or 1 if all rows agree), H heads (of this rank under tensor parallelism), Q queries, K keys, L layers.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import is_tracing

from .position_base import Float32Positions, PositionMethod, past_distance, wave_angles
from .tensor_parallel import heads_of_rank, shared_by_ranks


KERPLE_VARIANTS = ("log", "power")
FIRE_QUERIES_AT_ONCE = 32
T5_LONGEST_DISTANCE = 2**20  # the lookup table has one entry per distance
SANDWICH_LARGEST_DIM = 2**16


class T5Positions(Float32Positions):
    """T5: one learned bias per head and distance bucket (Raffel et al. 2020, arXiv:1910.10683, section 2.1).

    The first half of the buckets cover one distance each. The others widen logarithmically up to ``t5_max_distance``,
    beyond which all keys share the last bucket. All layers share one table, as in the paper. Its initial values are
    normal with standard deviation ``hidden_size ** -0.5``, as in T5 of transformers.
    """

    has_bias = True
    bias_is_of_distance = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.buckets = nn.Buffer(torch.empty(config.t5_max_distance + 1, dtype=torch.int64), persistent=False)
        self.init_weights()

    @classmethod
    def check_config(cls, config: Any) -> None:
        num_buckets = config.t5_num_buckets
        if config.t5_max_distance > T5_LONGEST_DISTANCE:
            raise ValueError(f"t5_max_distance must be at most {T5_LONGEST_DISTANCE}, got {config.t5_max_distance}")
        if num_buckets < 2 or num_buckets % 2:
            raise ValueError(f"t5_num_buckets must be even and at least 2, got {num_buckets}")
        if config.t5_max_distance <= num_buckets // 2:
            raise ValueError(
                f"t5_max_distance must be above t5_num_buckets / 2 = {num_buckets // 2}, got {config.t5_max_distance}"
            )

    @classmethod
    def parameter_shapes(cls, config: Any) -> dict[str, tuple[int, ...]]:
        return {"bucket_bias": (config.t5_num_buckets, config.num_attention_heads)}

    def init_weights(self) -> None:
        num_buckets, max_distance = self.config.t5_num_buckets, self.config.t5_max_distance
        buckets = [t5_bucket(distance, num_buckets, max_distance) for distance in range(max_distance + 1)]
        init.copy_(self.buckets, torch.tensor(buckets))
        init.normal_(self.bucket_bias, std=self.config.hidden_size**-0.5)

    def bias(self, layer_idx: int, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype) -> Tensor:
        table = heads_of_rank(self.bucket_bias.to(dtype), self.head_mesh)[self.buckets]
        return _bias_by_distance(table, past_distance(query_positions, key_positions))


class SharedOffsetPositions(Float32Positions):
    """One learned bias per head and offset, shared by all layers: T5 biases without buckets.

    Clipped offsets follow Shaw et al. 2018 (arXiv:1803.02155, section 3.2), who learn vectors; scalars follow Raffel
    et al. 2020 (arXiv:1910.10683, section 2.1). The table covers the ``train_context_length`` offsets that occur in
    training. Keys further away share the last entry, which occurs once per training text. Longer texts work, but
    distances beyond the training length are indistinguishable. Initial values are normal with ``initializer_range``.
    """

    has_bias = True
    bias_is_of_distance = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.init_weights()

    @classmethod
    def parameter_shapes(cls, config: Any) -> dict[str, tuple[int, ...]]:
        return {"offset_bias": (config.train_context_length, config.num_attention_heads)}

    def init_weights(self) -> None:
        init.normal_(self.offset_bias, std=self.config.initializer_range)

    def bias(self, layer_idx: int, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype) -> Tensor:
        table = heads_of_rank(self.offset_bias.to(dtype), self.head_mesh)
        return _bias_by_distance(table, past_distance(query_positions, key_positions))


class KerplePositions(Float32Positions):
    """KERPLE: a learned kernel of distance (Chi et al. 2022, arXiv:2205.09921, section 4).

    ``log``: ``-r1 * log(1 + r2 * distance)``; ``power``: ``-r1 * distance ** r2`` with r2 below 2. Each head has its
    own r1 and r2, shared by all layers (figure 1 of the paper, and its code). As in that code, initial values are
    uniform, r1 in (0, 2) and r2 in (0, 1) for ``log``, the reverse for ``power``, and at least 0.01. Training updates
    their logarithms, or for the exponent the logit of r2 / 2, where that code clips at every step.
    """

    has_bias = True
    bias_is_of_distance = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.init_weights()

    @classmethod
    def parameter_shapes(cls, config: Any) -> dict[str, tuple[int, ...]]:
        r2 = "bias_log_r2" if config.kerple_variant == "log" else "bias_logit_r2"
        return dict.fromkeys(("bias_log_r1", r2), (config.num_attention_heads,))

    @classmethod
    def check_config(cls, config: Any) -> None:
        if config.kerple_variant not in KERPLE_VARIANTS:
            raise ValueError(
                f"kerple_variant must be one of {', '.join(KERPLE_VARIANTS)}, got {config.kerple_variant!r}"
            )

    def init_weights(self) -> None:
        up_to_1, up_to_2 = (width * torch.rand(self.config.num_attention_heads) for width in (1, 2))
        up_to_1, up_to_2 = up_to_1.clamp(min=0.01), up_to_2.clamp(min=0.01)
        if self.config.kerple_variant == "log":
            init.copy_(self.bias_log_r1, up_to_2.log())
            init.copy_(self.bias_log_r2, up_to_1.log())
        else:
            init.copy_(self.bias_log_r1, up_to_1.log())
            init.copy_(self.bias_logit_r2, (up_to_2 / 2).logit())

    def kernel(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """r1 and r2 of every head of this rank, ``(H,)`` each."""
        r1 = self.bias_log_r1.to(dtype).exp()
        if self.config.kerple_variant == "log":
            r2 = self.bias_log_r2.to(dtype).exp()
        else:
            r2 = 2 * self.bias_logit_r2.to(dtype).sigmoid()
        return heads_of_rank(r1, self.head_mesh), heads_of_rank(r2, self.head_mesh)

    def bias(self, layer_idx: int, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype) -> Tensor:
        r1, r2 = (parameter[:, None, None] for parameter in self.kernel(dtype))
        distance = past_distance(query_positions, key_positions)[:, None].to(dtype)
        return -r1 * (torch.log1p(r2 * distance) if self.config.kerple_variant == "log" else distance**r2)


class FirePositions(Float32Positions):
    """FIRE: a learned function of distance relative to the query's position (Li et al. 2024, arXiv:2310.04418, 3.2).

    The bias is ``f(psi(i - j) / psi(max(i, L)))`` with ``psi(x) = log(1 + c * x)``, positions i and j from 0, and f an
    MLP from 1 to H with one hidden layer and ReLU. It depends on the query's position, not on the text length, so
    chunking and caching do not change results. Each layer has its own f, c and L, or all share them (FIRE-S,
    ``fire_shared_by_layers``). As in the listing of the paper's appendix, the MLP is initialized like ``nn.Linear``, c
    to 0.1 and L to ``fire_threshold``. c and L are trained as logarithms, where that listing takes absolute values.
    The output layer has no bias, because softmax ignores constants.
    """

    has_bias = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bias_differs_by_layer = not config.fire_shared_by_layers
        self.init_weights()

    @classmethod
    def parameter_shapes(cls, config: Any) -> dict[str, tuple[int, ...]]:
        num_functions = 1 if config.fire_shared_by_layers else config.num_hidden_layers
        num_hidden, num_heads = config.fire_hidden_size, config.num_attention_heads
        return {
            "bias_log_c": (num_functions,),
            "bias_log_threshold": (num_functions,),
            "hidden_weight": (num_functions, num_hidden),
            "hidden_bias": (num_functions, num_hidden),
            "output_weight": (num_functions, num_hidden, num_heads),
        }

    @classmethod
    def check_config(cls, config: Any) -> None:
        if config.fire_hidden_size < 1:
            raise ValueError(f"fire_hidden_size must be at least 1, got {config.fire_hidden_size}")
        if config.fire_threshold is not None and not 0 < config.fire_threshold < math.inf:
            raise ValueError(f"fire_threshold must be a finite number above 0 or null, got {config.fire_threshold}")

    def init_weights(self) -> None:
        threshold = self.config.fire_threshold
        threshold = self.config.train_context_length / 4 if threshold is None else threshold
        init.constant_(self.bias_log_c, math.log(0.1))
        init.constant_(self.bias_log_threshold, math.log(threshold))
        init.uniform_(self.hidden_weight, -1.0, 1.0)
        init.uniform_(self.hidden_bias, -1.0, 1.0)
        bound = self.config.fire_hidden_size**-0.5
        init.uniform_(self.output_weight, -bound, bound)

    def bias(self, layer_idx: int, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype) -> Tensor:
        index = layer_idx if self.bias_differs_by_layer else 0
        shared = (self.bias_log_c, self.bias_log_threshold, self.hidden_weight, self.hidden_bias)
        log_c, log_threshold, hidden_weight, hidden_bias = (
            shared_by_ranks(parameter, self.head_mesh)[index].to(dtype) for parameter in shared
        )
        output_weight = heads_of_rank(self.output_weight[index].to(dtype), self.head_mesh)
        c, threshold = log_c.exp(), log_threshold.exp()
        reach = torch.maximum(query_positions.to(dtype), threshold)[..., None]
        distance = torch.log1p(c * past_distance(query_positions, key_positions)) / torch.log1p(c * reach)
        # The hidden units (B, Q, K, hidden) are the model's largest tensor; without gradients, compute them in parts.
        learns = torch.is_grad_enabled() and output_weight.requires_grad
        num_queries = distance.shape[1] if learns or is_tracing(distance) else FIRE_QUERIES_AT_ONCE
        parts = []
        with torch.autocast(distance.device.type, enabled=False):
            for part in distance.split(num_queries, dim=1):
                hidden = torch.addcmul(hidden_bias, part[..., None], hidden_weight).relu_()
                parts.append((hidden @ output_weight).permute(0, 3, 1, 2))
        return torch.cat(parts, dim=2)


class SandwichPositions(PositionMethod):
    """Sandwich: the product of two sinusoidal embeddings, without parameters (Chi et al. 2023, arXiv:2212.10356, 5).

    The bias is ``sum_k cos((i - j) / 10000 ** (2k / dim)) / ratio`` over k from 0 to ``dim / 2 - 1``, with compression
    ratio ``8h / H`` for head h = 1..H. It is shifted to 0 at distance 0: softmax ignores the constant, and small
    values survive a bfloat16 mask.
    """

    has_bias = True
    bias_is_of_distance = True

    @classmethod
    def check_config(cls, config: Any) -> None:
        if config.sandwich_dim < 2 or config.sandwich_dim % 2:
            raise ValueError(f"sandwich_dim must be even and at least 2, got {config.sandwich_dim}")
        if config.sandwich_dim > SANDWICH_LARGEST_DIM:
            raise ValueError(f"sandwich_dim must be at most {SANDWICH_LARGEST_DIM}, got {config.sandwich_dim}")

    def bias(self, layer_idx: int, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype) -> Tensor:
        device, num_heads = query_positions.device, self.config.num_attention_heads
        # float32 loses precision for large angles, and autocast does not touch float64.
        wave_dtype = dtype if device.type == "mps" else torch.float64
        queries, keys = (self._waves(positions, wave_dtype) for positions in (query_positions, key_positions))
        with torch.autocast(device.type, enabled=False):
            product = (queries @ keys.transpose(1, 2) - self.config.sandwich_dim / 2).to(dtype)
        ratios = 8 * torch.arange(1, num_heads + 1, device=device, dtype=dtype) / num_heads
        return product[:, None] / heads_of_rank(ratios, self.head_mesh)[:, None, None]

    def _waves(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        angles = wave_angles(positions, self.config.sandwich_dim, dtype)
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


def t5_bucket(distance: int, num_buckets: int, max_distance: int) -> int:
    """Bucket, from 0 to ``num_buckets - 1``, of a distance of at least 0 tokens from query back to key."""
    num_exact = num_buckets // 2
    if distance < num_exact:
        return distance
    octaves = math.log(distance / num_exact) / math.log(max_distance / num_exact)
    return min(num_exact + int(octaves * (num_buckets - num_exact)), num_buckets - 1)


def _bias_by_distance(table: Tensor, distance: Tensor) -> Tensor:
    """Look up ``(B, H, Q, K)`` in a table ``(N, H)`` with one row per distance; larger distances use the last row."""
    return F.embedding(distance.clamp(max=table.shape[0] - 1), table).permute(0, 3, 1, 2)
