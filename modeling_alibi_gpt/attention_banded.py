# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Banded ALiBi attention: keys that provably cannot matter are never read. Travels to the Hub.

With slope s, a key at distance d loses ``s * d`` nats. What it can win back by its content is bounded by the lengths
of the query and the key, and so is the weight of all keys before some point. That point follows from the queries and
keys of the call itself, for every head and block of queries:

Let a be the scale of ``q . k``, c any vector, and ``k' = k - c``. Shifting every key by c changes all scores of a
query alike, hence no weight. For query i, the keys before some point p add up to

    sum over j < p of exp(score(i, j))  <=  sum over j < p of exp(a |q_i| |k'_j| - s (i - j)).

The sum over all keys, by which weights are divided, is at least the exponential of

* the score of the query's own key, ``a q_i . k'_i``;
* for any n of the keys it sees, ``log n + mean of their scores`` (arithmetic above geometric mean), which takes no
  more than the mean of the n keys and their mean distance.

The quotient bounds the weight that is left out. For a block of queries we take the longest query, the smallest of the
divisors and the smallest distances, and read keys from the last point on for which the bound is at most the
tolerance. Flat heads look far, and there the sum is taken over short runs of keys; steep heads put the longest key for
all, which leaves a geometric sum (:func:`alibi_windows`). What is left out moves the output of a query by at most
twice the tolerance times the largest ``|v|``.

Shapes: B batch, H heads, Q queries, K keys, d head size, N blocks of queries.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .alibi import alibi_windows
from .attention_blocks import band_blocks
from .attention_context import AttentionContext
from .attention_flex import distance_score_mod, flex, visible_blocks
from .attention_spans import Span
from .attention_strips import Tile, chunks, see_themselves, strip_attention, whole_tiles
from .attention_windows import WindowedStates, attend_windows


# To find out what can matter takes longer than to read fewer keys than this.
MIN_BANDED_TOKENS = 1024
BLOCK_TOKENS = 64
# Heads at least this steep look at a few hundred keys only.
_STEEP = 2**-4
# and at least this steep gain nothing from a mean over a block.
_VERY_STEEP = 2**-3
# Flat heads take this many blocks of queries together,
_FLAT_BLOCKS = 4
# and this many keys, the longest of which stands for all.
_RUN_TOKENS = 8
# A margin beyond this means that every key must be read; it keeps infinite scores out of integer arithmetic.
_ENDLESS_NATS = 1e6
# Heads go together while their widest window is at most this much wider than their narrowest.
_WIDTH_RATIO = 1.25
# Below this window in tokens, so many queries are read together. Measured on two CPU cores, with which powers of two
# are shared out evenly.
_CHUNKS = ((512, 64), (1024, 128), (math.inf, 256))
# Float32 sums of a few hundred products are good to this part of their largest possible value.
_ROUNDING = 2**-14


class BandedAttention:
    """ALiBi over the keys that can matter, found anew from the queries and keys of every layer.

    Args:
        context: Who sees whom.
        slopes: ``(H,)``, nats per token.
        tolerance: Largest weight that a query may lose.
    """

    def __init__(self, context: AttentionContext, slopes: Tensor, tolerance: float) -> None:
        self.context, self.slopes, self.tolerance = context, slopes, tolerance
        self.spans = context.spans()
        self.lost_queries = context.lost_queries()
        if context.keeps_windows and not context.is_whole:
            context.mask()  # made now, for a layer's update moves the cache on

    def attend(self, query: Tensor, key: Any, value: Any, scaling: float, dropout: float) -> Tensor:
        slopes = self.slopes.to(query.device)
        if isinstance(key, WindowedStates):
            return attend_windows(self.context, slopes, query, key, value, scaling, dropout)
        if query.device.type != "cpu" and dropout == 0.0:
            return self._attend_blocks(query, key, value, slopes, scaling)
        if self.context.kv_len < MIN_BANDED_TOKENS:
            tiles = whole_tiles(self.spans, slopes.shape[0], self.context.kv_len - self.context.q_len)
        else:
            tiles = banded_tiles(query, key, slopes.detach(), self.spans, scaling, self.tolerance)
        output = strip_attention(query, key, value, slopes, tiles, scaling, dropout)
        return see_themselves(output, value, self.lost_queries)

    def _attend_blocks(self, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, scaling: float) -> Tensor:
        """By flex attention, whose kernels skip whole blocks of keys."""
        if self.context.kv_len < MIN_BANDED_TOKENS:
            blocks = visible_blocks(self.context, query.device)
        else:
            blocks = band_blocks(query, key, slopes, scaling, self.tolerance, self.context.first_keys())
        score_mod = distance_score_mod(slopes, key.shape[2] - query.shape[2])
        return flex(query, key, value, score_mod, blocks, scaling)


def banded_tiles(
    query: Tensor, key: Tensor, slopes: Tensor, spans: Sequence[Span], scaling: float, tolerance: float
) -> list[Tile]:
    """Tiles that read, for every head and chunk of queries, the keys that can matter.

    Args:
        query: ``(B, H, Q, d)``, the last Q of K tokens.
        key: ``(B, H, K, d)``.
        slopes: ``(H,)``, nats per token.
        spans: Who sees whom.
        scaling: What multiplies ``q . k``.
        tolerance: Largest weight that a query may lose.
    """
    offset = key.shape[2] - query.shape[2]
    tiles = []
    for span in spans:
        keys = slice(span.first_key, span.queries.stop + offset)
        windows = [
            _windows(
                query[span.rows, head, span.queries], key[span.rows, head, keys], slope, scaling, tolerance
            ).tolist()
            for head, slope in enumerate(slopes.tolist())
        ]
        for heads in similar_heads([max(blocks) for blocks in windows]):
            widest = [max(blocks) for blocks in zip(*windows[heads], strict=True)]
            for chunk in chunks(span.queries, _chunk_tokens(max(widest))):
                blocks = range(chunk.start - span.queries.start, chunk.stop - span.queries.start, BLOCK_TOKENS)
                first_keys = (
                    span.queries.start + start + offset + 1 - widest[start // BLOCK_TOKENS] for start in blocks
                )
                tiles.append(
                    Tile(span.rows, heads, chunk, slice(max(span.first_key, min(first_keys)), chunk.stop + offset))
                )
    return tiles


def similar_heads(windows: Sequence[int]) -> list[slice]:
    """Runs of neighbouring heads whose windows differ by at most a quarter, so that they can be read together."""
    edges = [0]
    for head in range(1, len(windows)):
        run = windows[edges[-1] : head + 1]
        if max(run) > _WIDTH_RATIO * max(1, min(run)):
            edges.append(head)
    return [slice(*edge) for edge in itertools.pairwise([*edges, len(windows)])]


def _chunk_tokens(window: int) -> int:
    """Queries read together: the half of a chunk that lies in the future is waste, so narrow bands take few."""
    return next(chunk for limit, chunk in _CHUNKS if window < limit)


def score_margins(query: Tensor, key: Tensor, slopes: Tensor, scaling: float) -> Tensor:
    """By how many nats a key's content can outdo what a query is known to divide by.

    Args:
        query: ``(B, H, Q, d)``, the last Q of K tokens.
        key: ``(B, H, K, d)``.
        slopes: ``(H,)``, nats per token.
        scaling: What multiplies ``q . k``.

    Returns:
        ``(H,)`` float32, nats: the largest margin of all queries.
    """
    margins = []
    for head, slope in enumerate(slopes.tolist()):
        query_norm, key_norm, known = _bounds(query[:, head], key[:, head], slope, scaling)
        longest = key_norm.cummax(-1).values[:, key.shape[2] - query.shape[2] :]
        margins.append((query_norm * longest - known).nan_to_num(nan=_ENDLESS_NATS).clamp(max=_ENDLESS_NATS).amax())
    return torch.stack(margins)


def _windows(query: Tensor, key: Tensor, slope: float, scaling: float, tolerance: float) -> Tensor:
    """``(N,)``: how many keys ``(B, K, d)`` the first query of each block of ``(B, Q, d)`` must read, of one head."""
    query_norm, key_norm, known = _bounds(query, key, slope, scaling)
    longest_query, least_known = query_norm.amax(0), known.amin(0)  # (Q,), over all rows
    longest_key = key_norm.amax(0)
    offset = key.shape[1] - query.shape[1]
    if slope >= _STEEP:
        margin = longest_query * longest_key.cummax(-1).values[offset:] - least_known
        margin = _blocks(margin.nan_to_num(nan=_ENDLESS_NATS), -torch.inf, BLOCK_TOKENS).amax(-1)
        return alibi_windows(key.new_full(margin.shape, slope), margin.clamp(max=_ENDLESS_NATS), tolerance)

    coarse = _FLAT_BLOCKS * BLOCK_TOKENS
    longest_query = _blocks(longest_query, 0.0, coarse).amax(-1)  # (N,)
    least_known = _blocks(least_known, torch.inf, coarse).amin(-1)
    longest_key = _blocks(longest_key, 0.0, _RUN_TOKENS).amax(-1)  # (runs,)
    query_position = offset + coarse * torch.arange(longest_query.shape[0], device=query.device)
    last_key = _RUN_TOKENS * torch.arange(1, longest_key.shape[0] + 1, device=query.device) - 1
    distance = query_position[:, None] - last_key
    log_weight = longest_query[:, None] * longest_key - slope * distance - least_known[:, None] + math.log(_RUN_TOKENS)
    left_out = log_weight.masked_fill(distance <= 0, torch.inf).exp().cumsum(1)
    # The sum only grows, so that the runs which may be left out are those before the first that may not.
    rounding = left_out.shape[1] * torch.finfo(left_out.dtype).eps
    first_key = _RUN_TOKENS * (left_out <= tolerance * (1 - rounding)).sum(1)
    blocks = torch.arange(-(-query.shape[1] // BLOCK_TOKENS), device=query.device)
    return offset + BLOCK_TOKENS * blocks + 1 - first_key[blocks // _FLAT_BLOCKS]


def _bounds(query: Tensor, key: Tensor, slope: float, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of one head: ``a |q|`` ``(B, Q)``, ``|k'|`` ``(B, K)``, and the log of what each query at least divides by."""
    query, key = query.detach().float(), key.detach().float()
    centre = key.mean(1, keepdim=True)
    key = key - centre
    query_norm, key_norm = query.norm(dim=-1) * scaling, key.norm(dim=-1)
    rounding = query_norm * (key_norm.amax(-1) + centre.norm(dim=-1)[:, 0])[:, None] * _ROUNDING
    before = _log_sum_before(query, key, slope, scaling) if slope < _VERY_STEEP else None
    # In place, for the cost of all this is memory.
    known = key[:, key.shape[1] - query.shape[1] :].mul_(query).sum(-1) * scaling
    if before is not None:
        known = torch.maximum(known, before)
    return query_norm, key_norm, known - rounding


def _log_sum_before(query: Tensor, key: Tensor, slope: float, scaling: float) -> Tensor:
    """``(B, Q)``: log of n plus the mean score of n keys, those of some whole blocks before the query's own.

    ``log n - s n / 2`` is largest at n = 2 / s, which decides how many blocks are taken. -inf without any.
    """
    q_len, offset = query.shape[1], key.shape[1] - query.shape[1]
    sums = _blocks(key[:, offset % BLOCK_TOKENS :], 0.0, BLOCK_TOKENS, dim=1).sum(2).double().cumsum(1)
    sums = F.pad(sums, (0, 0, 1, 0))  # (B, blocks + 1, d): of all keys before a block
    ends = torch.arange(offset // BLOCK_TOKENS, sums.shape[1] - 1, device=key.device)  # (N,)
    starts = (ends - max(1, round(2 / slope / BLOCK_TOKENS))).clamp(min=0)
    num_keys = ((ends - starts).float() * BLOCK_TOKENS)[:, None]  # (N, 1)
    means = ((sums[:, ends] - sums[:, starts]) / num_keys.clamp(min=1)).float()
    content = torch.matmul(_blocks(query, 0.0, BLOCK_TOKENS, dim=1), means[..., None])[..., 0] * scaling
    distance = torch.arange(1, BLOCK_TOKENS + 1, device=key.device) + (num_keys - 1) / 2
    return (content + num_keys.log() - slope * distance).flatten(1)[:, :q_len]


def _blocks(states: Tensor, fill: float, block_tokens: int, dim: int = -1) -> Tensor:
    """Cut dimension ``dim`` of T tokens into ``(N, block_tokens)``, filled up."""
    missing = -states.shape[dim] % block_tokens
    if missing:
        shape = list(states.shape)
        shape[dim] = missing
        states = torch.cat((states, states.new_full(shape, fill)), dim)
    return states.unflatten(dim, (-1, block_tokens))
