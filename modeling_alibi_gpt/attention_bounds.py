# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Provable bounds on which keys can matter to which queries under a bias of distance. Exported to the Hub.

ALiBi with slope s lowers the score of a key at distance d by ``s * d`` nats. The norms of query and key bound what the
content can add to the score. Together these bound the total weight of all keys before a given point. That point is
computed from the queries and keys of the call, for every head and block of queries.

Let a be the scale of ``q . k``, b(d) the bias at distance d, c any vector, and ``k' = k - c``. Shifting every key by c
shifts all scores of a query equally, so it changes no weight. For query i, the keys before point p satisfy

    sum over j < p of exp(score(i, j))  <=  sum over j < p of exp(a |q_i| |k'_j| + b(i - j)).

The softmax denominator is at least the exponential of

* the score of the query's own key, ``a q_i . k'_i + b(0)``;
* for any n visible keys, ``log n + mean of their scores`` (by the inequality of arithmetic and geometric means), which
  needs only the mean of the n keys and the mean of their biases.

The quotient bounds the weight that is left out. It is used twice, with half the tolerance each time:

* Per block: the longest query and the smallest denominator of a block of queries, against the longest key of a block
  of keys at the nearest possible distance. Blocks are skipped from the first one on while their sum is small enough.
* Per distance: among the blocks that are read, the longest key represents all keys. Keys at or beyond the *reach* of a
  block of queries have less than half the tolerance in total and are masked.

Leaving keys out changes the output of a query by at most twice the tolerance times the largest ``|v|``.

**Exact to rounding.** A softmax denominator S is accumulated in float32. A running sum of size S is not changed by
terms below 2**-25 S. Keys whose weights total 2**-30 S are a 32nd of that. An output without them differs by at most
2**-29 of the largest ``|v|``, while float32 itself rounds to 2**-24. :func:`exact_tolerance` gives this bound for the
accumulation format.

Shapes: B batch, H heads, Q queries, K keys, d head size, M and N blocks of queries and keys. Queries are the last Q of
K tokens. Blocks of keys end where blocks of queries end, so the first may be shorter.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


BLOCK_TOKENS = 64
# A head is not pruned if it would read more than this fraction of its keys even with equal content scores.
_WORTH_ASKING = 0.7
# Error bound of a float32 sum of a few hundred products, relative to its largest possible value.
_ROUNDING = 2**-14
# Exponentials below this are negligible at any tolerance, and subnormal results are slow on some processors.
_LEAST_NATS = -80.0


def exact_tolerance(dtype: torch.dtype) -> float:
    """Total weight too small to affect the result: 2**-30 for float32 and 16-bit formats, which accumulate in it."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2**7


class DistanceBias:
    """A bias of distance and its partial sums, computed once for all layers.

    Args:
        values: ``(H, K)``, nats, at distances 0 to ``K - 1``.
        tolerance: Largest attention weight that may be left out per query, above 0.

    Attributes:
        masses: ``(H, n)`` float32: log of the summed exponentials over distances 64 n - 63 to 64 n, n from 1. Each
            distance counts with the largest bias at that distance or beyond.
        mean_blocks: For each head, the number of blocks of keys that maximizes ``log n + mean bias``; 0 if the
            query's own key alone gives more.
    """

    def __init__(self, values: Tensor, tolerance: float) -> None:
        self.values, self.tolerance = values.detach(), tolerance
        exact = self.values.double()
        # Log of the sum over each distance and all larger ones.
        self._tails = exact.flip(-1).logcumsumexp(-1).flip(-1)
        self._sums = F.pad(exact.cumsum(-1), (1, 0))
        nearest = exact.flip(-1).cummax(-1).values.flip(-1)
        self.masses = _blocks(nearest[:, min(1, exact.shape[1] - 1) :], -torch.inf).logsumexp(-1).float()
        self.mean_blocks = self._best_mean()

    def _best_mean(self) -> list[int]:
        num_blocks = (self.values.shape[1] - 1) // BLOCK_TOKENS
        num_keys = BLOCK_TOKENS * torch.arange(1, num_blocks + 1, device=self.values.device)
        if not num_keys.numel():
            return [0] * self.values.shape[0]
        best, index = (num_keys.log() + self._sums[:, num_keys] / num_keys).max(-1)
        return torch.where(best > self._sums[:, 1], index + 1, 0).tolist()

    def worth_asking(self, num_keys: int) -> list[bool]:
        """Whether each head could skip a large part of ``num_keys`` keys if all had the same content score."""
        tails = self._tails[:, min(int(_WORTH_ASKING * num_keys), self._tails.shape[1] - 1)]
        return (tails - self.values[:, 0] <= math.log(self.tolerance / 2)).tolist()

    def reaches(self, heads: slice, margins: Tensor) -> Tensor:
        """Distances ``(H, M)`` int64 from which on keys total at most half the tolerance; margins ``(H, M)``, nats."""
        limits = math.log(self.tolerance / 2) - margins.double()
        return torch.searchsorted(-self._tails[heads], -limits)

    def mean(self, heads: slice, nearest: Tensor, num_keys: Tensor) -> Tensor:
        """Mean bias ``(H, M, n)`` float32 of ``num_keys`` ``(H, M)`` keys starting at distances ``(n,)``."""
        last = (nearest + num_keys[..., None]).clamp(max=self.values.shape[1])  # (H, M, n)
        sums = self._sums[heads]
        total = sums.gather(1, last.flatten(1)).view(last.shape) - sums[:, None, nearest.clamp(max=sums.shape[1] - 1)]
        return (total / num_keys.clamp(min=1)[..., None]).float()


class KeysThatMatter(NamedTuple):
    """The keys that each block of queries must read; both tensors are ``(H, M)`` int64.

    Attributes:
        first_blocks: The first block of keys to read.
        reaches: Keys at this distance or beyond may be masked.
    """

    first_blocks: Tensor
    reaches: Tensor


def keys_that_matter(query: Tensor, key: Tensor, bias: DistanceBias, heads: slice, scaling: float) -> KeysThatMatter:
    """Determine the keys that can matter for some heads.

    Args:
        query: ``(B, H, Q, d)`` of these heads, the last Q of K tokens.
        key: ``(B, H, K, d)`` of these heads.
        bias: Bias of all heads.
        heads: The heads that ``query`` and ``key`` contain.
        scaling: Factor of ``q . k``.
    """
    query_norm, key_norm, known = _bounds(query, key, bias, heads, scaling)
    q_len, kv_len = query.shape[2], key.shape[2]
    longest_query = _blocks(query_norm.amax(0), 0.0).amax(-1)  # (H, M), over all rows
    least_known = _blocks(known.amin(0), torch.inf).amin(-1)
    longest_key = _blocks(_from_block_start(key_norm.amax(0), kv_len - q_len), 0.0).amax(-1)  # (H, N)
    num_before = longest_key.shape[1] - longest_query.shape[1]

    own_block = num_before + torch.arange(longest_query.shape[1], device=query.device)[:, None]  # (M, 1)
    block = torch.arange(longest_key.shape[1], device=query.device)
    blocks_apart = own_block - block  # (M, N)
    masses = bias.masses[heads][:, (blocks_apart - 1).clamp(min=0, max=bias.masses.shape[1] - 1)]
    log_weight = longest_query[..., None] * longest_key[:, None] + masses - least_known[..., None]
    left_out = log_weight.masked_fill(blocks_apart <= 0, torch.inf).clamp(min=_LEAST_NATS).exp().cumsum(-1)
    # The sum is monotone, so this counts the leading blocks that may be left out.
    rounding = left_out.shape[-1] * torch.finfo(left_out.dtype).eps + _ROUNDING
    first_blocks = (left_out <= bias.tolerance / 2 * (1 - rounding)).sum(-1)

    is_read = (block >= first_blocks[..., None]) & (blocks_apart >= 0)
    longest_read = torch.where(is_read, longest_key[:, None], 0.0).amax(-1)
    margins = (longest_query * longest_read - least_known).nan_to_num(nan=torch.inf)
    return KeysThatMatter(first_blocks, bias.reaches(heads, margins))


def largest_margins(
    query: Tensor, key: Tensor, bias: DistanceBias, scaling: float, is_one_text: bool = True
) -> Tensor:
    """Bound how much a content score can exceed the log of any query's softmax denominator: ``(H,)``, nats.

    Args:
        query: ``(B, H, Q, d)``, the last Q of K tokens.
        key: ``(B, H, K, d)``.
        bias: Bias of these heads.
        scaling: Factor of ``q . k``.
        is_one_text: Whether every query sees all keys before its own.
    """
    query_norm, key_norm, known = _bounds(query, key, bias, slice(None), scaling, is_one_text)
    longest = key_norm.cummax(-1).values[..., key.shape[2] - query.shape[2] :]
    return (query_norm * longest - known).nan_to_num(nan=torch.inf).amax((0, 2))


def _bounds(
    query: Tensor, key: Tensor, bias: DistanceBias, heads: slice, scaling: float, is_one_text: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """``a |q|`` and a lower bound of the log of the softmax denominator, ``(B, H, Q)``; ``|k'|`` ``(B, H, K)``."""
    query, key = query.detach().float(), key.detach().float()
    offset = key.shape[2] - query.shape[2]
    start = offset % BLOCK_TOKENS
    stop = start + (key.shape[2] - start) // BLOCK_TOKENS * BLOCK_TOKENS
    sums = key[:, :, start:stop].unflatten(2, (-1, BLOCK_TOKENS)).sum(3)  # (B, H, whole blocks, d)
    centre = sums.sum(2) + key[:, :, :start].sum(2) + key[:, :, stop:].sum(2)
    centre = centre[:, :, None] / key.shape[2]

    key = key - centre
    query_norm, key_norm = query.norm(dim=-1) * scaling, key.norm(dim=-1)
    largest = key_norm.amax(-1) + centre.norm(dim=-1)[..., 0]
    known = (key[:, :, offset:] * query).sum(-1) * scaling + bias.values[heads, :1].float()
    if is_one_text and sums.shape[2] and any(bias.mean_blocks[heads]):
        sums = (sums - BLOCK_TOKENS * centre).double().cumsum(2)
        known = torch.maximum(known, _log_sum_before(query, sums, bias, heads, offset // BLOCK_TOKENS, scaling))
    return query_norm, key_norm, known - query_norm * largest[..., None] * _ROUNDING


def _log_sum_before(
    query: Tensor, sums: Tensor, bias: DistanceBias, heads: slice, first_block: int, scaling: float
) -> Tensor:
    """``log n`` plus the mean score of the n keys in some whole blocks before each query's own block.

    Args:
        query: ``(B, H, Q, d)``.
        sums: ``(B, H, N, d)`` float64, cumulative sums of the keys to the end of each whole block.
        bias: Bias of all heads.
        heads: The heads that ``query`` contains.
        first_block: Number of whole blocks before the first query.
        scaling: Factor of ``q . k``.

    Returns:
        ``(B, H, Q)``, nats; -inf if there are no such blocks.
    """
    sums = F.pad(sums, (0, 0, 1, 0))
    queries = _blocks(query, 0.0, dim=2)  # (B, H, M, 64, d)
    stops = first_block + torch.arange(queries.shape[2], device=query.device)
    starts = (stops - torch.tensor(bias.mean_blocks[heads], device=query.device)[:, None]).clamp(min=0)  # (H, M)
    num_keys = BLOCK_TOKENS * (stops - starts)
    at_start = sums.gather(2, starts[None, :, :, None].expand(sums.shape[0], -1, -1, sums.shape[-1]))
    means = ((sums[:, :, stops] - at_start) / num_keys.clamp(min=1)[..., None]).float()
    content = (queries * means[:, :, :, None]).sum(-1) * scaling  # (B, H, M, 64)
    nearest = torch.arange(1, BLOCK_TOKENS + 1, device=query.device)
    biases = bias.mean(heads, nearest, num_keys)
    return (content + num_keys.log()[..., None] + biases).flatten(2)[:, :, : query.shape[2]]


def _from_block_start(norms: Tensor, num_before: int) -> Tensor:
    """Prepend zeros to ``(H, K)``, so that a block ends just before the first query."""
    return F.pad(norms, (-num_before % BLOCK_TOKENS, 0))


def _blocks(states: Tensor, fill: float, dim: int = -1) -> Tensor:
    """Split dimension ``dim`` into ``(M, 64)``, padded with ``fill``."""
    missing = -states.shape[dim] % BLOCK_TOKENS
    if missing:
        shape = list(states.shape)
        shape[dim] = missing
        states = torch.cat((states, states.new_full(shape, fill)), dim)
    return states.unflatten(dim, (-1, BLOCK_TOKENS))
