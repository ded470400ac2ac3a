# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""ALiBi attention in fused Triton kernels, which read only the keys that can matter. Exported to the Hub.

Scores never leave the chip, forward or backward, and slopes get gradients. For bfloat16 and float16 on NVIDIA GPUs.

Shapes: B batch, H heads, H_kv key/value heads, Q queries, K keys, d head size.
"""

import functools
import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .attention_augmented import AugmentedAttention
from .attention_context import AttentionContext


DTYPES = (torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 128
# Computing which keys to skip does not pay in shorter texts.
MIN_SKIPPED_TOKENS = 1024
# Constants of the kernels, whose module needs Triton.
_QUERY_TOKENS, _BLOCK_TOKENS = 128, 64
# bfloat16 needs compute capability 8.0. GPUs with less shared memory per block than this keep fewer tiles in it.
_MIN_CAPABILITY = (8, 0)
_MIN_SHARED_BYTES = 160 * 1024
# The sum that a kernel compares with the tolerance has rounding errors.
_TOLERANCE_FACTOR = 1 - 2**-10


class FusedAttention:
    """ALiBi through :func:`fused_attention`.

    Args:
        context: Visibility, which must be expressed by segments.
        slopes: ``(1 or B, 1, H)``, nats per token.
        tolerance: Largest attention weight that may be left out per query.
    """

    def __init__(self, context: AttentionContext, slopes: Tensor, tolerance: float) -> None:
        first_keys = context.first_keys()
        self.context, self.slopes, self.tolerance = context, slopes, tolerance
        self.first_keys = None if first_keys is None else first_keys.int()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Return ``(B, H, Q, d)`` for queries ``(B, H, Q, d)`` and for keys and values ``(B, H_kv, K, d)``."""
        if dropout > 0.0 or query.shape[-1] > MAX_HEAD_DIM:
            num_groups = query.shape[1] // key.shape[1]
            key, value = (states.repeat_interleave(num_groups, dim=1) for states in (key, value))
            return AugmentedAttention(self.context, self.slopes).attend(query, key, value, scaling, dropout)
        first_keys = None if self.first_keys is None else self.first_keys.to(query.device)
        slopes = self.slopes[:, 0].to(query.device)
        return fused_attention(query, key, value, slopes, scaling, self.tolerance, first_keys)


def can_fuse(context: AttentionContext, slopes: Tensor) -> bool:
    """Whether the kernels support this device, dtype, visibility, and slopes ``(1 or B, 1 or Q, H)``."""
    is_supported = context.dtype in DTYPES and slopes.shape[1] == 1 and context.is_causal
    return is_supported and _has_kernels(slopes.device) and context.segments() is not None


@functools.cache
def _has_kernels(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= _MIN_CAPABILITY


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor,
    scaling: float,
    tolerance: float,
    first_keys: Tensor | None = None,
) -> Tensor:
    """Causal ALiBi attention, differentiable in queries, keys, values and slopes.

    Args:
        query: ``(B, H, Q, d)``, the last Q of K tokens; d at most 128.
        key: ``(B, H_kv, K, d)``, like ``value``; H is a multiple of H_kv.
        value: ``(B, H_kv, K, d)``.
        slopes: ``(1 or B, H)`` float32, nats per token.
        scaling: Factor of ``q . k``.
        tolerance: Largest attention weight that may be left out per query.
        first_keys: ``(1 or B, Q)`` int32, the first key that each query sees, at most its own; None means key 0.

    Returns:
        ``(B, H, Q, d)``.
    """
    with torch.cuda.device_of(query):  # Triton launches kernels on the current device
        return _FusedAttention.apply(query, key, value, slopes, scaling, tolerance, first_keys)


class _Tiles(NamedTuple):
    """Tokens per tile of queries and of keys, and how a kernel runs."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


# By head size, for GPUs with much and with little shared memory. The fastest of those tried on an H200.
_TILES: dict[str, dict[int, tuple[_Tiles, _Tiles]]] = {
    "forward": {
        64: (_Tiles(128, 64, 4, 3), _Tiles(128, 64, 4, 2)),
        128: (_Tiles(128, 64, 8, 3), _Tiles(128, 64, 8, 2)),
    },
    "query_gradients": {
        64: (_Tiles(64, 64, 4, 3), _Tiles(64, 64, 4, 2)),
        128: (_Tiles(128, 64, 8, 3), _Tiles(64, 64, 8, 1)),
    },
    "key_gradients": {
        64: (_Tiles(64, 64, 4, 3), _Tiles(64, 64, 4, 2)),
        128: (_Tiles(32, 64, 4, 3), _Tiles(32, 64, 4, 1)),
    },
}


@functools.cache
def _tiles(kernel: str, dims: int, device: torch.device) -> _Tiles:
    large, small = _TILES[kernel][max(64, dims)]
    if device.type != "cuda":
        return large
    return large if _shared_bytes(device) >= _MIN_SHARED_BYTES else small


def _shared_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def _run(kernel: Any, num_programs: int, tiles: _Tiles, *arguments: Any) -> None:
    kernel[(num_programs,)](*arguments, num_warps=tiles.num_warps, num_stages=tiles.num_stages)


class _Call(NamedTuple):
    """What the kernels of one call share, beside tensors of states.

    Attributes:
        slopes: Slopes, and the stride of a row.
        first_keys: First keys, and the stride of a row; any tensor if there are none.
        sizes: H, query heads per key/value head, Q and K.
        shape: d, and the next power of two.
        has_first_keys: Whether there are first keys.
    """

    slopes: tuple[Tensor, int]
    first_keys: tuple[Tensor, int]
    sizes: tuple[int, int, int, int]
    shape: tuple[int, int]
    has_first_keys: bool


def _call(query: Tensor, key: Tensor, slopes: Tensor, first_keys: Tensor | None) -> _Call:
    (_, num_heads, q_len, head_dim), (_, num_kv_heads, kv_len, _) = query.shape, key.shape
    dims = max(16, 1 << (head_dim - 1).bit_length())
    rows = slopes if first_keys is None else first_keys
    return _Call(
        (slopes, slopes.stride(0) if slopes.shape[0] > 1 else 0),
        (rows, rows.stride(0) if rows.shape[0] > 1 else 0),
        (num_heads, num_heads // num_kv_heads, q_len, kv_len),
        (head_dim, dims),
        first_keys is not None,
    )


class _FusedAttention(torch.autograd.Function):
    """See :func:`fused_attention`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        slopes: Tensor,
        scaling: float,
        tolerance: float,
        first_keys: Tensor | None,
    ) -> Tensor:
        from .attention_kernels import forward_kernel, key_norms_kernel  # needs Triton

        states = tuple(_with_dense_rows(tensor) for tensor in (query, key, value))
        call = _call(query, key, slopes.detach().contiguous(), first_keys)
        num_rows, (num_heads, _, q_len, kv_len) = query.shape[0], call.sizes
        num_kv_heads, (head_dim, dims) = key.shape[1], call.shape
        num_tiles, num_blocks = _cdiv(q_len, _QUERY_TOKENS), _cdiv(kv_len, _BLOCK_TOKENS)
        output = torch.empty_like(states[0])
        log_sums = slopes.new_empty(num_rows, num_heads, q_len)
        starts = torch.empty(num_rows, num_heads, num_tiles, dtype=torch.int32, device=query.device)
        skips_keys = tolerance > 0.0 and kv_len >= MIN_SKIPPED_TOKENS
        bounds = log_sums, log_sums
        if skips_keys:
            norms = slopes.new_empty(num_rows, num_kv_heads, num_blocks)
            centres = slopes.new_empty(num_rows, num_kv_heads, head_dim)
            bounds = norms, centres
            grid = (num_blocks * num_rows * num_kv_heads,)
            key_norms_kernel[grid](states[1], states[1].stride()[:3], *bounds, num_kv_heads, kv_len, head_dim, dims)
        tiles = _tiles("forward", dims, query.device)
        strides = tuple(tensor.stride()[:3] for tensor in (*states, output))
        _run(
            forward_kernel, num_tiles * num_rows * num_heads, tiles,
            states, strides, call.slopes, call.first_keys, bounds, (output, log_sums, starts), call.sizes, scaling,
            tolerance * _TOLERANCE_FACTOR, *call.shape, tiles.keys, call.has_first_keys, skips_keys,
        )  # fmt: skip
        ctx.save_for_backward(*states, output, call.slopes[0], log_sums, starts, first_keys)
        ctx.scaling = scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        from .attention_gradients import key_gradients_kernel, query_gradients_kernel  # needs Triton

        query, key, value, output, slopes, log_sums, starts, first_keys = ctx.saved_tensors
        direction, call = _with_dense_rows(direction), _call(query, key, slopes, first_keys)
        learns_slopes, device, num_rows = ctx.needs_input_grad[3], query.device, query.shape[0]
        deltas, gradients = torch.empty_like(log_sums), tuple(_empty_as(states) for states in (query, key, value))
        states = query, key, value, output, direction
        strides = tuple(tensor.stride()[:3] for tensor in states)
        tiles = _tiles("query_gradients", call.shape[1], device)
        num_tiles = _cdiv(query.shape[2], tiles.queries)
        parts = log_sums.new_empty(num_rows, query.shape[1], num_tiles) if learns_slopes else deltas
        _run(
            query_gradients_kernel, num_tiles * num_rows * query.shape[1], tiles,
            states, strides, call.slopes, call.first_keys, (log_sums, starts), (gradients[0], deltas, parts),
            call.sizes, ctx.scaling, *call.shape, *tiles[:2], call.has_first_keys, learns_slopes,
        )  # fmt: skip
        tiles = _tiles("key_gradients", call.shape[1], device)
        _run(
            key_gradients_kernel, _cdiv(key.shape[2], tiles.keys) * num_rows * key.shape[1], tiles,
            (*states[:3], direction), (*strides[:3], strides[4]), call.slopes, call.first_keys,
            (log_sums, starts, deltas), gradients[1:], call.sizes, ctx.scaling, *call.shape, *tiles[:2],
            call.has_first_keys,
        )  # fmt: skip
        slope_gradients = parts.sum(2).sum_to_size(slopes.shape) if learns_slopes else None
        return *gradients, slope_gradients, None, None, None


def _cdiv(number: int, size: int) -> int:
    return -(-number // size)


def _with_dense_rows(states: Tensor) -> Tensor:
    """A copy unless the numbers of a token are adjacent and no heads or tokens share memory, as the kernels need."""
    is_shared = any(size > 1 and stride == 0 for size, stride in zip(states.shape, states.stride(), strict=True))
    return states.contiguous() if is_shared or states.stride(-1) != 1 else states


def _empty_as(states: Tensor) -> Tensor:
    """Uninitialized tensor with the strides of the states, even where these leave gaps."""
    return torch.empty_strided(states.shape, states.stride(), dtype=states.dtype, device=states.device)
