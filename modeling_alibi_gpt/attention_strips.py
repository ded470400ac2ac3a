# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Attention in tiles: chunks of queries, each with one run of keys, and no matrix of biases. Travels to the Hub.

With its queries in reverse order, query i and key j of a tile are ``constant - (i + j)`` tokens apart. So the biases
of a whole tile are one vector a head, the strip, read with strides ``(1, 1)``: they take no memory, and the kernel
finds them in its nearest cache. Stock kernels of ``scaled_dot_product_attention`` do the work.

Shapes: B batch, H heads, Q queries, K keys, d head size. Queries are the last Q of K tokens.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .attention_context import AttentionContext
from .attention_spans import Span


# Up to so many keys, so many queries to a tile, measured on two CPU cores. Larger chunks waste the half of a tile that
# lies in the future, smaller ones do not fill the blocks of the kernel.
_CHUNKS = ((2048, 256), (math.inf, 768))

_flash_on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_on_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class StripAttention:
    """A bias of distance over all keys, in the spans of tokens that see each other.

    Args:
        context: Who sees whom.
        slopes: ``(H,)``, nats per token; or
        biases: ``(H, K)``, nats: those of keys 0, 1, 2 ... tokens behind their query.
    """

    def __init__(self, context: AttentionContext, slopes: Tensor | None = None, biases: Tensor | None = None) -> None:
        if biases is None:
            biases = linear_biases(slopes, context.kv_len, context.dtype)
        self.tiles = whole_tiles(context.spans(), biases.shape[0], context.kv_len - context.q_len)
        self.lost_queries = context.lost_queries()
        self.strip = Strip(biases, self.tiles)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        output = attend_tiles(query, key, value, self.strip, self.tiles, scaling, dropout)
        return see_themselves(output, value, self.lost_queries)


class Tile(NamedTuple):
    """Queries and the run of keys they read; the last key is that of the last query.

    Attributes:
        rows: Rows of the batch.
        heads: Heads.
        queries: Queries, at most one chunk.
        keys: Keys.
    """

    rows: slice
    heads: slice
    queries: slice
    keys: slice

    @property
    def queries_of(self) -> tuple[slice, slice, slice]:
        """Index of the tile's part in what is ``(B, H, Q, ...)``."""
        return self.rows, self.heads, self.queries

    @property
    def keys_of(self) -> tuple[slice, slice, slice]:
        """Index of the tile's part in what is ``(B, H, K, ...)``."""
        return self.rows, self.heads, self.keys


def whole_tiles(spans: Sequence[Span], num_heads: int, offset: int, chunk_tokens: int | None = None) -> list[Tile]:
    """Tiles that read every key which a query sees.

    Args:
        spans: Who sees whom.
        num_heads: H.
        offset: Keys before the first query: K - Q.
        chunk_tokens: Queries in a tile, at most; None leaves it to the length of the text.
    """
    tiles = []
    for span in spans:
        num_keys = span.queries.stop + offset - span.first_key
        fitting = next(chunk for limit, chunk in _CHUNKS if num_keys <= limit)
        for queries in chunks(span.queries, chunk_tokens or fitting):
            keys = slice(span.first_key, queries.stop + offset)
            tiles.append(Tile(span.rows, slice(0, num_heads), queries, keys))
    return tiles


def chunks(queries: slice, chunk_tokens: int) -> list[slice]:
    """Consecutive parts of a range, the last one shorter."""
    starts = range(queries.start, queries.stop, chunk_tokens)
    return [slice(start, min(start + chunk_tokens, queries.stop)) for start in starts]


def strip_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor,
    tiles: Sequence[Tile],
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """Attention with ALiBi over the keys that the tiles read.

    Args:
        query: ``(B, H, Q, d)``.
        key: ``(B, H, K, d)``, like ``value``.
        value: ``(B, H, K, d)``.
        slopes: ``(H,)``, nats per token.
        tiles: Which queries read which keys; every query in at most one tile a head.
        scaling: What multiplies ``q . k``.
        dropout: Probability.

    Returns:
        ``(B, H, Q, d)``; 0 for queries in no tile.
    """
    strip = Strip(linear_biases(slopes, key.shape[2], query.dtype), tiles)
    return attend_tiles(query, key, value, strip, tiles, scaling, dropout)


def attend_tiles(
    query: Tensor, key: Tensor, value: Tensor, strip: "Strip", tiles: Sequence[Tile], scaling: float, dropout: float
) -> Tensor:
    """:func:`strip_attention` with a strip that was made before, for all layers."""
    has_flash = query.device.type == "cpu" and dropout == 0.0 and not strip.values.requires_grad
    if has_flash and not torch.compiler.is_compiling():
        return _FlashTiles.apply(query, key, value, strip, tiles, scaling)
    output = torch.zeros_like(query)
    for tile in tiles:
        part = F.scaled_dot_product_attention(
            query[tile.queries_of].flip(2),
            key[tile.keys_of],
            value[tile.keys_of],
            # Kernels of other devices want the bias aligned, and of the dtype of the queries.
            attn_mask=strip.bias(tile).to(query.dtype).contiguous(),
            dropout_p=dropout,
            scale=scaling,
        )
        output[tile.queries_of] = part.flip(2)
    return output


def see_themselves(output: Tensor, value: Tensor, lost_queries: Tensor | None) -> Tensor:
    """``(B, H, Q, d)`` where queries that see no key, which are padding, have the value of their own, as elsewhere."""
    if lost_queries is None:
        return output
    return torch.where(lost_queries, value[:, :, -output.shape[2] :], output)


def linear_biases(slopes: Tensor, num_distances: int, dtype: torch.dtype) -> Tensor:
    """ALiBi's ``(H, N)`` of slopes ``(H,)``, at least float32, at distances from 0 to ``N - 1`` tokens."""
    dtype = torch.promote_types(dtype, torch.float32)
    distance = torch.arange(num_distances, device=slopes.device, dtype=dtype)
    return -slopes[:, None].to(dtype) * distance


class Strip:
    """Bias by distance, ``(H, L)``: from far to near, and -inf for keys that come after the query.

    Args:
        biases: ``(H, N)``, nats, at distances from 0 to ``N - 1``, at least as far as a tile reaches.
        tiles: For the longest of which it is made.
    """

    def __init__(self, biases: Tensor, tiles: Sequence[Tile]) -> None:
        longest_chunk = max((tile.queries.stop - tile.queries.start for tile in tiles), default=1)
        self.longest_run = max((tile.keys.stop - tile.keys.start for tile in tiles), default=1)
        past = biases[:, : self.longest_run].flip(-1)
        self.values = F.pad(past, (0, longest_chunk - 1), value=-torch.inf)

    def bias(self, tile: Tile) -> Tensor:
        """``(1, H, Q, K)`` of one tile with its queries in reverse; a view, all of whose diagonals share memory."""
        num_queries, num_keys = tile.queries.stop - tile.queries.start, tile.keys.stop - tile.keys.start
        values = self.values[tile.heads, self.longest_run - num_keys :]
        size = (1, values.shape[0], num_queries, num_keys)
        return values.as_strided(size, (0, values.stride(0), 1, 1), values.storage_offset())


class _FlashTiles(torch.autograd.Function):
    """The tiles on a CPU, each key's gradient added in place; autograd would make a tensor of all keys for each tile.

    Calls the two kernels that ``scaled_dot_product_attention`` itself calls on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, strip: Strip, tiles: Sequence[Tile], scaling: float
    ) -> Tensor:
        output = _zeros_by_token(query)
        log_sums = torch.zeros(query.shape[:3], dtype=strip.values.dtype)
        for tile in tiles:
            part, log_sum = _flash_on_cpu(
                query[tile.queries_of].flip(2),
                key[tile.keys_of],
                value[tile.keys_of],
                attn_mask=strip.bias(tile),
                scale=scaling,
            )
            output[tile.queries_of], log_sums[tile.queries_of] = part.flip(2), log_sum.flip(2)
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.strip, ctx.tiles, ctx.scaling = strip, tiles, scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, log_sums = ctx.saved_tensors
        dtype = torch.promote_types(key.dtype, torch.float32)
        grad_query = torch.zeros_like(query)
        grad_key, grad_value = torch.zeros_like(key, dtype=dtype), torch.zeros_like(value, dtype=dtype)
        for tile in ctx.tiles:
            reverse = (tensor[tile.queries_of].flip(2) for tensor in (grad_output, query, output, log_sums))
            grad_part, query_part, output_part, log_sum = reverse
            grads = _flash_on_cpu_backward(
                grad_part,
                query_part,
                key[tile.keys_of],
                value[tile.keys_of],
                output_part,
                log_sum,
                dropout_p=0.0,
                is_causal=False,
                attn_mask=ctx.strip.bias(tile),
                scale=ctx.scaling,
            )
            grad_query[tile.queries_of] = grads[0].flip(2)
            grad_key[tile.keys_of] += grads[1]
            grad_value[tile.keys_of] += grads[2]
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def _zeros_by_token(states: Tensor) -> Tensor:
    """Zeros ``(B, H, Q, d)`` that lie in memory as ``(B, Q, H, d)``: the order of the kernel and of the next layer."""
    num_rows, num_heads, q_len, head_dim = states.shape
    return states.new_zeros(num_rows, q_len, num_heads, head_dim).transpose(1, 2)
