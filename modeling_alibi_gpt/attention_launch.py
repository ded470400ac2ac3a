# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Launches of the fused kernels, in eager code and as operators for compilers. Exported to the Hub.

Shapes: B batch, H heads, H_kv key/value heads, Q queries, K keys, d head size, M tiles of queries. Arguments are those
of :func:`~modeling_alibi_gpt.attention_fused.fused_attention`; the last dimension of states has stride 1.
"""

import functools
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor


# Computing which keys to skip does not pay off for shorter texts.
MIN_SKIPPED_TOKENS = 1024
# Constants of the kernels, whose module needs Triton.
_QUERY_TOKENS, _BLOCK_TOKENS = 128, 64
# GPUs with less shared memory per block than this keep fewer tiles in it.
_MIN_SHARED_BYTES = 160 * 1024
# The sum that a kernel compares with the tolerance has rounding errors.
_TOLERANCE_FACTOR = 1 - 2**-10


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
    properties = torch.cuda.get_device_properties(device)
    return large if properties.shared_memory_per_block_optin >= _MIN_SHARED_BYTES else small


def _run(kernel: Any, num_programs: int, tiles: _Tiles, *arguments: Any) -> None:
    kernel[(num_programs,)](*arguments, num_warps=tiles.num_warps, num_stages=tiles.num_stages)


class _Call(NamedTuple):
    """What the kernels of one call share, besides the states.

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


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor,
    scaling: float,
    tolerance: float,
    first_keys: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, logs of the softmax denominators ``(B, H, Q)``, and the first key that each tile reads ``(B, H, M)``."""
    from .attention_kernels import forward_kernel, key_norms_kernel  # needs Triton

    call, states = _call(query, key, slopes, first_keys), (query, key, value)
    num_rows, (num_heads, _, q_len, kv_len) = query.shape[0], call.sizes
    num_kv_heads, (head_dim, dims) = key.shape[1], call.shape
    num_tiles, num_blocks = _cdiv(q_len, _QUERY_TOKENS), _cdiv(kv_len, _BLOCK_TOKENS)
    output, log_sums, starts = results = _empty_results(query, slopes)
    skips_keys = tolerance > 0.0 and kv_len >= MIN_SKIPPED_TOKENS
    bounds = log_sums, log_sums
    with torch.cuda.device_of(query):  # Triton launches kernels on the current device
        if skips_keys:
            norms = slopes.new_empty(num_rows, num_kv_heads, num_blocks)
            bounds = norms, slopes.new_empty(num_rows, num_kv_heads, head_dim)
            grid = (num_blocks * num_rows * num_kv_heads,)
            key_norms_kernel[grid](key, key.stride()[:3], *bounds, num_kv_heads, kv_len, head_dim, dims)
        tiles = _tiles("forward", dims, query.device)
        strides = tuple(tensor.stride()[:3] for tensor in (*states, output))
        _run(
            forward_kernel, num_tiles * num_rows * num_heads, tiles,
            states, strides, call.slopes, call.first_keys, bounds, results, call.sizes, scaling,
            tolerance * _TOLERANCE_FACTOR, *call.shape, tiles.keys, call.has_first_keys, skips_keys,
        )  # fmt: skip
    return results


def _empty_results(query: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    num_rows, num_heads, q_len, _ = query.shape
    starts = (num_rows, num_heads, _cdiv(q_len, _QUERY_TOKENS))
    return (
        torch.empty_like(query),
        slopes.new_empty(num_rows, num_heads, q_len),
        torch.empty(starts, dtype=torch.int32, device=query.device),
    )


def backward(
    direction: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    slopes: Tensor,
    log_sums: Tensor,
    starts: Tensor,
    first_keys: Tensor | None,
    scaling: float,
    learns_slopes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, keys, values and slopes; those of the slopes are 0 unless they learn."""
    from .attention_gradients import key_gradients_kernel, query_gradients_kernel  # needs Triton

    call, num_rows = _call(query, key, slopes, first_keys), query.shape[0]
    deltas = torch.empty_like(log_sums)
    *gradients, slope_gradients = _empty_gradients(query, key, value, slopes)
    states = query, key, value, output, direction
    strides = tuple(tensor.stride()[:3] for tensor in (*states, *gradients))
    with torch.cuda.device_of(query):
        tiles = _tiles("query_gradients", call.shape[1], query.device)
        num_tiles = _cdiv(query.shape[2], tiles.queries)
        parts = log_sums.new_empty(num_rows, query.shape[1], num_tiles) if learns_slopes else deltas
        _run(
            query_gradients_kernel, num_tiles * num_rows * query.shape[1], tiles,
            states, strides[:6], call.slopes, call.first_keys, (log_sums, starts), (gradients[0], deltas, parts),
            call.sizes, scaling, *call.shape, *tiles[:2], call.has_first_keys, learns_slopes,
        )  # fmt: skip
        tiles = _tiles("key_gradients", call.shape[1], query.device)
        _run(
            key_gradients_kernel, _cdiv(key.shape[2], tiles.keys) * num_rows * key.shape[1], tiles,
            (*states[:3], direction), (*strides[:3], strides[4], *strides[6:]), call.slopes, call.first_keys,
            (log_sums, starts, deltas), tuple(gradients[1:]), call.sizes, scaling, *call.shape, *tiles[:2],
            call.has_first_keys,
        )  # fmt: skip
        if learns_slopes:
            slope_gradients.copy_(parts.sum(2).sum_to_size(slopes.shape))
    return *gradients, slope_gradients


def _empty_gradients(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> tuple[Tensor, ...]:
    return *(torch.empty_like(states) for states in (query, key, value)), torch.zeros_like(slopes)


def _cdiv(number: int, size: int) -> int:
    return -(-number // size)


# Compilers call the kernels as operators. Names of operators are ASCII and unique; an exported folder has its own copy
# of this module, whose name has any letters that a folder's may have.
_NAMESPACE = "alibi_gpt_" + re.sub(r"[^0-9A-Za-z]", lambda match: f"_{ord(match[0]):x}", __name__)
forward_operator = torch.library.custom_op(f"{_NAMESPACE}::forward", forward, mutates_args=())
backward_operator = torch.library.custom_op(f"{_NAMESPACE}::backward", backward, mutates_args=())


@forward_operator.register_fake
def _fake_forward(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _empty_results(query, slopes)


@backward_operator.register_fake
def _fake_backward(
    direction: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, slopes: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    return _empty_gradients(query, key, value, slopes)
