# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Attention in tiles: chunks of queries, each with one run of keys, and no bias matrix. Exported to the Hub.

A bias of distance is a Toeplitz matrix, defined by one vector per head. If the queries of a tile are reversed, query i
and key j are ``constant - (i + j)`` tokens apart, so the bias of the tile is a view of that vector with strides
``(1, 1)``. It needs no memory of its own and fits in the fastest CPU cache. The computation uses the stock kernels of
``scaled_dot_product_attention``.

Shapes: B batch, H heads, Q queries, K keys, d head size, N chunks per tile of C queries and L keys each. Queries are
the last Q of K tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


_flash_on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_on_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Tile(NamedTuple):
    """Queries and the run of keys that they read, which ends with the key of the last query.

    A tile of one head may consist of several chunks, which the kernel processes as a batch. The queries and keys of
    each chunk start C tokens after those of the previous chunk.

    Attributes:
        rows: Rows of the batch.
        heads: Heads.
        queries: Queries of the first chunk.
        keys: Keys of the first chunk. Their number is a multiple of C if there are several chunks.
        num_chunks: N.
        reaches: For each head, the distance from which on keys are masked; None masks none.
    """

    rows: slice
    heads: slice
    queries: slice
    keys: slice
    num_chunks: int = 1
    reaches: tuple[int, ...] | None = None

    @property
    def num_queries(self) -> int:
        """C."""
        return self.queries.stop - self.queries.start

    @property
    def num_keys(self) -> int:
        """L."""
        return self.keys.stop - self.keys.start

    def queries_of(self, states: Tensor) -> Tensor:
        """View of states ``(B, H, Q, ...)``: ``(B, H, C, ...)``, or ``(B, N, C, ...)`` for several chunks."""
        if self.num_chunks == 1:
            return states[self.rows, self.heads, self.queries]
        tokens = slice(self.queries.start, self.queries.start + self.num_chunks * self.num_queries)
        return states[self.rows, self.heads.start, tokens].unflatten(1, (self.num_chunks, self.num_queries))

    def keys_of(self, states: Tensor) -> Tensor:
        """View of states ``(B, H, K, d)``: ``(B, H, L, d)``, or ``(B, N, L, d)`` whose chunks overlap in memory."""
        if self.num_chunks == 1:
            return states[self.rows, self.heads, self.keys]
        tokens = slice(self.keys.start, self.keys.stop + (self.num_chunks - 1) * self.num_queries)
        return states[self.rows, self.heads.start, tokens].unfold(1, self.num_keys, self.num_queries).mT

    def add_to_keys(self, total: Tensor, part: Tensor) -> None:
        """Add ``part`` to ``keys_of(total)``, whose chunks overlap."""
        if self.num_chunks == 1:
            total[self.rows, self.heads, self.keys] += part
            return
        for start in range(0, self.num_keys, self.num_queries):
            first = self.keys.start + start
            tokens = slice(first, first + self.num_chunks * self.num_queries)
            shared = total[self.rows, self.heads.start, tokens].unflatten(1, (self.num_chunks, self.num_queries))
            shared += part[:, :, start : start + self.num_queries]


def attend_tiles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    toeplitz: "ToeplitzBias",
    tiles: Sequence[Tile],
    scaling: float,
    dropout: float,
) -> Tensor:
    """Attention with a bias of distance over the keys that the tiles read.

    Args:
        query: ``(B, H, Q, d)``.
        key: ``(B, H, K, d)``, like ``value``.
        value: ``(B, H, K, d)``.
        toeplitz: The bias, made for these tiles.
        tiles: Which queries read which keys. Each query is in at most one tile per head.
        scaling: Factor of ``q . k``.
        dropout: Dropout probability.

    Returns:
        ``(B, H, Q, d)``; 0 for queries in no tile.
    """
    has_flash = query.device.type == "cpu" and dropout == 0.0 and not toeplitz.values.requires_grad
    if has_flash and not torch.compiler.is_compiling():
        return _FlashTiles.apply(query, key, value, toeplitz, tiles, scaling)
    output = torch.zeros_like(query)
    for tile in tiles:
        part = F.scaled_dot_product_attention(
            tile.queries_of(query).flip(2),
            tile.keys_of(key),
            tile.keys_of(value),
            # Kernels of other devices require an aligned bias of the query dtype.
            attn_mask=toeplitz.bias(tile).to(query).contiguous(),
            dropout_p=dropout,
            scale=scaling,
        )
        tile.queries_of(output).copy_(part.flip(2))
    return output


def attend_to_self(output: Tensor, value: Tensor, fully_masked_queries: Tensor | None) -> Tensor:
    """Set the output ``(B, H, Q, d)`` of padding queries, which see no key, to their own value, as elsewhere."""
    if fully_masked_queries is None:
        return output
    return torch.where(fully_masked_queries.to(output.device), value[:, :, -output.shape[2] :], output)


def linear_biases(slopes: Tensor, num_distances: int, dtype: torch.dtype) -> Tensor:
    """ALiBi bias ``(H, N)`` at distances 0 to ``N - 1`` for slopes ``(H,)``, in at least float32."""
    dtype = torch.promote_types(dtype, torch.float32)
    distance = torch.arange(num_distances, device=slopes.device, dtype=dtype)
    return -slopes[:, None].to(dtype) * distance


class ToeplitzBias:
    """Vector ``(H, n)`` of a Toeplitz bias matrix, from far to near, then -inf for future keys.

    Args:
        biases: ``(H, n)``, nats, at distances 0 to ``n - 1``, which must cover the longest tile.
        tiles: Tiles that will read the bias.
    """

    def __init__(self, biases: Tensor, tiles: Sequence[Tile]) -> None:
        longest_chunk = max((tile.num_queries for tile in tiles), default=1)
        self.longest_run = max((tile.num_keys for tile in tiles), default=1)
        past = biases[:, : self.longest_run].flip(-1)
        self.values = F.pad(past, (0, longest_chunk - 1), value=-torch.inf)

    def bias(self, tile: Tile) -> Tensor:
        """Bias ``(1, H, C, L)`` of one chunk with reversed queries, as a view whose antidiagonals share memory.

        All chunks of a tile have the same bias.
        """
        num_queries, num_keys = tile.num_queries, tile.num_keys
        values = self.values[tile.heads, self.longest_run - num_keys : self.longest_run + num_queries - 1]
        if tile.reaches is not None and min(tile.reaches) < num_keys:
            distance = torch.arange(num_keys - 1, -num_queries, -1, device=values.device)
            is_beyond = distance >= torch.tensor(tile.reaches, device=values.device)[:, None]
            values = values.masked_fill(is_beyond, -torch.inf)
        size = (1, values.shape[0], num_queries, num_keys)
        return values.as_strided(size, (0, values.stride(0), 1, 1), values.storage_offset())


class _FlashTiles(torch.autograd.Function):
    """Tiled attention on a CPU that accumulates key gradients in place; autograd would allocate all keys per tile.

    It calls the two kernels that ``scaled_dot_product_attention`` itself calls on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        toeplitz: ToeplitzBias,
        tiles: Sequence[Tile],
        scaling: float,
    ) -> Tensor:
        output = _zeros_by_token(query)
        log_sums = torch.zeros(query.shape[:3], dtype=toeplitz.values.dtype)
        for tile in tiles:
            part, log_sum = _flash_on_cpu(
                tile.queries_of(query).flip(2),
                tile.keys_of(key),
                tile.keys_of(value),
                attn_mask=toeplitz.bias(tile),
                scale=scaling,
            )
            tile.queries_of(output).copy_(part.flip(2))
            tile.queries_of(log_sums).copy_(log_sum.flip(2))
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.toeplitz, ctx.tiles, ctx.scaling = toeplitz, tiles, scaling
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # autograd.grad skips the error of once_differentiable, and would leave these terms out.
        if torch.is_grad_enabled():
            raise RuntimeError("attention in tiles has no second derivatives: set attn_implementation='eager'")
        query, key, value, output, log_sums = ctx.saved_tensors
        dtype = torch.promote_types(key.dtype, torch.float32)
        grad_query = torch.zeros_like(query)
        grad_key, grad_value = torch.zeros_like(key, dtype=dtype), torch.zeros_like(value, dtype=dtype)
        for tile in ctx.tiles:
            reverse = (tile.queries_of(tensor).flip(2) for tensor in (grad_output, query, output, log_sums))
            grad_part, query_part, output_part, log_sum = reverse
            grads = _flash_on_cpu_backward(
                grad_part,
                query_part,
                tile.keys_of(key),
                tile.keys_of(value),
                output_part,
                log_sum,
                dropout_p=0.0,
                is_causal=False,
                attn_mask=ctx.toeplitz.bias(tile),
                scale=ctx.scaling,
            )
            tile.queries_of(grad_query).copy_(grads[0].flip(2))
            tile.add_to_keys(grad_key, grads[1])
            tile.add_to_keys(grad_value, grads[2])
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def _zeros_by_token(states: Tensor) -> Tensor:
    """Zeros ``(B, H, Q, d)`` with the memory layout ``(B, Q, H, d)`` of the kernel and the output projection."""
    num_rows, num_heads, q_len, head_dim = states.shape
    return states.new_zeros(num_rows, q_len, num_heads, head_dim).transpose(1, 2)
