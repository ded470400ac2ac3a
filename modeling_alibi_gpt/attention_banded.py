# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Banded ALiBi attention: keys that provably cannot matter are never read. Travels to the Hub.

With slope s, a key at distance d loses ``s * d`` nats. What it can win back by its content is bounded by the lengths
of the query and the keys, and so is the weight of all keys beyond a window together. The window follows from the
queries and keys of the call itself:

Let a be the scale of ``q . k``, c any vector, and ``k' = k - c``. Shifting every key by c changes all scores of a
query alike, hence no weight. For query i, with ``R = max |k'_j|`` over the keys it sees,

    sum over d >= W of exp(score(i, i-d))  <=  sum over d >= W of exp(a |q_i| R - s d).

The sum over all keys, by which weights are divided, is at least the exponential of

* the score of the query's own key, ``a q_i . k'_i``;
* for any n of the keys it sees, ``log n + mean of their scores`` (arithmetic above geometric mean), which takes no
  more than the mean of the n keys and their mean distance.

With ``margin_i = a |q_i| R - max(of the two)``, the weight at distances W and beyond is at most
``sum over d >= W of exp(margin_i - s d)``, and :func:`alibi_windows` gives the smallest W for which that is at most
the tolerance. What is left out moves the output of a query by at most twice the tolerance times the largest ``|v|``.

Shapes: B batch, H heads, Q queries, K keys, d head size, N blocks of queries.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .alibi import alibi_windows
from .attention_context import AttentionContext, Span
from .attention_strips import CHUNK_TOKENS, Tile, chunks, see_themselves, strip_attention
from .attention_windows import WindowedStates, attend_windows


BLOCK_TOKENS = 64
# A margin beyond this means that every key must be read; it keeps infinite scores out of integer arithmetic.
_ENDLESS_NATS = 1e6
# Heads go together while their widest window is at most this much wider than their narrowest.
_WIDTH_RATIO = 1.25
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
        tiles = banded_tiles(query, key, slopes.detach(), self.spans, scaling, self.tolerance)
        output = strip_attention(query, key, value, slopes, tiles, scaling, dropout)
        return see_themselves(output, value, self.lost_queries)


def banded_tiles(
    query: Tensor, key: Tensor, slopes: Tensor, spans: Sequence[Span], scaling: float, tolerance: float
) -> list[Tile]:
    """Tiles that read, for every head and chunk of queries, the keys within its window.

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
        queries, stop = query[span.rows, :, span.queries], span.queries.stop + offset
        margins = score_margins(queries, key[span.rows, :, span.first_key : stop], slopes, scaling)
        windows = torch.stack([alibi_windows(slopes, block, tolerance) for block in margins.unbind(1)], dim=1)
        for heads in similar_heads(windows.amax(1).tolist()):
            widest = windows[heads].amax(0).tolist()
            chunk_tokens = _chunk_tokens(max(widest))
            for chunk in chunks(span.queries, chunk_tokens):
                blocks = slice((chunk.start - span.queries.start) // BLOCK_TOKENS, None)
                first_key = chunk.start + offset + 1 - max(widest[blocks][: chunk_tokens // BLOCK_TOKENS])
                keys = slice(max(first_key, span.first_key), chunk.stop + offset)
                tiles.append(Tile(span.rows, heads, chunk, keys))
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
    fitting = window // 4 // BLOCK_TOKENS * BLOCK_TOKENS
    return min(max(fitting, BLOCK_TOKENS), CHUNK_TOKENS)


def score_margins(query: Tensor, key: Tensor, slopes: Tensor, scaling: float) -> Tensor:
    """By how many nats a key's content can outdo what a query is known to divide by.

    Args:
        query: ``(B, H, Q, d)``, the last Q of K tokens.
        key: ``(B, H, K, d)``.
        slopes: ``(H,)``, nats per token.
        scaling: What multiplies ``q . k``.

    Returns:
        ``(H, N)`` float32, nats: the largest margin of each block of ``BLOCK_TOKENS`` queries, over all rows.
    """
    query, key = query.detach().float(), key.detach().float()
    offset = key.shape[2] - query.shape[2]
    centre = key.mean(2, keepdim=True)
    key = key - centre
    longest = key.norm(dim=-1).cummax(-1).values[..., offset:]
    own = torch.linalg.vecdot(query, key[:, :, offset:]) * scaling
    known = torch.maximum(own, _log_sum_before(query, key, slopes, scaling))
    query_norm = query.norm(dim=-1) * scaling
    rounding = query_norm * (longest + centre.norm(dim=-1)) * _ROUNDING
    margins = (query_norm * longest - known + rounding).nan_to_num(nan=_ENDLESS_NATS)
    return _blocks(margins.clamp(max=_ENDLESS_NATS), -torch.inf).amax((0, 3))


def _log_sum_before(query: Tensor, key: Tensor, slopes: Tensor, scaling: float) -> Tensor:
    """``(B, H, Q)``: log of n plus the mean score of n keys, those of some whole blocks before the query's own.

    ``log n - s n / 2`` is largest at n = 2 / s, which decides how many blocks a head takes. -inf without any.
    """
    q_len, offset = query.shape[2], key.shape[2] - query.shape[2]
    sums = _blocks(key[:, :, offset % BLOCK_TOKENS :], 0.0, dim=2).sum(3).double().cumsum(2)
    sums = F.pad(sums, (0, 0, 1, 0))  # (B, H, blocks + 1, d): of all keys before a block
    ends = torch.arange(offset // BLOCK_TOKENS, sums.shape[2] - 1, device=key.device)  # (N,)
    starts = (ends - (2 / slopes / BLOCK_TOKENS).round().clamp(min=1).long()[:, None]).clamp(min=0)  # (H, N)
    num_keys = (ends - starts).float()[..., None] * BLOCK_TOKENS  # (H, N, 1)
    head = torch.arange(key.shape[1], device=key.device)[:, None]
    means = ((sums[:, :, ends] - sums[:, head, starts]) / num_keys.clamp(min=1)).float()
    content = torch.matmul(_blocks(query, 0.0, dim=2), means[..., None])[..., 0] * scaling  # (B, H, N, tokens)
    distance = torch.arange(1, BLOCK_TOKENS + 1, device=key.device) + (num_keys - 1) / 2
    return (content + num_keys.log() - slopes[:, None, None] * distance).flatten(2)[..., :q_len]


def _blocks(states: Tensor, fill: float, dim: int = -1) -> Tensor:
    """Cut dimension ``dim`` of T tokens into ``(N, BLOCK_TOKENS)``, filled up."""
    missing = -states.shape[dim] % BLOCK_TOKENS
    if missing:
        shape = list(states.shape)
        shape[dim] = missing
        states = torch.cat((states, states.new_full(shape, fill)), dim=dim)
    return states.unflatten(dim, (-1, BLOCK_TOKENS))
