# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Which keys can matter to which queries, under a bias of distance: a proof, in numbers. Travels to the Hub.

With ALiBi of slope s, a key at distance d loses ``s * d`` nats. What it can win back by its content is bounded by the
lengths of the query and the key, and so is the weight of all keys before some point. That point follows from the
queries and keys of the call itself, for every head and block of queries:

Let a be the scale of ``q . k``, b(d) the bias at distance d, c any vector, and ``k' = k - c``. Shifting every key by c
changes all scores of a query alike, hence no weight. For query i, the keys before some point p add up to

    sum over j < p of exp(score(i, j))  <=  sum over j < p of exp(a |q_i| |k'_j| + b(i - j)).

The sum over all keys, by which weights are divided, is at least the exponential of

* the score of the query's own key, ``a q_i . k'_i + b(0)``;
* for any n of the keys it sees, ``log n + mean of their scores`` (arithmetic above geometric mean), which takes no
  more than the mean of the n keys and the mean of their biases.

The quotient bounds the weight that is left out. It is taken twice, with half the tolerance each:

* Block by block, the longest query and the smallest divisor of a block of queries against the longest key of a block
  of keys, and the nearest its keys can be. Blocks are left out from the first one on while their sum is small enough.
* Of what is read, the longest key stands for all. Keys at this distance or beyond, the block's *reach*, have less than
  the tolerance together, and are masked.

What is left out moves the output of a query by at most twice the tolerance times the largest ``|v|``.

**Exact to rounding.** A query that divides by S adds float32 numbers to a running sum of that size, which holds no
part of S below 2**-25: what is smaller, S does not change by it. Keys that weigh 2**-30 of S together are a 32nd of
that, and an output that misses them differs by at most 2**-29 of the largest ``|v|``, where float32 itself rounds to
2**-24. :func:`exact_tolerance` is this bound for the format in which attention adds.

Shapes: B batch, H heads, Q queries, K keys, d head size, M and N blocks of queries and keys. Queries are the last Q of
K tokens. Blocks of keys end where blocks of queries end, so that the first may be shorter.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


BLOCK_TOKENS = 64
# A head is not asked about where even a content of nothing would let it see more than this part of its keys.
_WORTH_ASKING = 0.7
# Float32 sums of a few hundred products are good to this part of their largest possible value.
_ROUNDING = 2**-14
# Exponentials below this are nothing beside any tolerance, and some processors are slow to find that out.
_LEAST_NATS = -80.0


def exact_tolerance(dtype: torch.dtype) -> float:
    """The weight below which keys do not change what attention adds up: 2**-30 in float32 and what adds in it."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2**7


class DistanceBias:
    """A bias of distance, and the sums of it that bounds need; made once, for all layers.

    Args:
        values: ``(H, K)``, nats, at distances from 0 to ``K - 1``.
        tolerance: Largest weight that a query may lose, above 0.

    Attributes:
        masses: ``(H, n)`` float32: log of the summed exponentials over distances from 64 n - 63 to 64 n, n from 1,
            where what is nearer counts as no worse than what is further.
        mean_blocks: How many blocks of keys have the largest ``log n + mean bias``, for each head; 0 where its own
            key alone has more.
    """

    def __init__(self, values: Tensor, tolerance: float) -> None:
        self.values, self.tolerance = values.detach(), tolerance
        exact = self.values.double()
        # Over a distance and all beyond it.
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
        """For each head, whether a good part of so many keys could be left out, if all had the same content."""
        tails = self._tails[:, min(int(_WORTH_ASKING * num_keys), self._tails.shape[1] - 1)]
        return (tails - self.values[:, 0] <= math.log(self.tolerance / 2)).tolist()

    def reaches(self, heads: slice, margins: Tensor) -> Tensor:
        """The distance from which on keys have less than half the tolerance: ``(H, M)`` int64 of nats ``(H, M)``."""
        limits = math.log(self.tolerance / 2) - margins.double()
        return torch.searchsorted(-self._tails[heads], -limits)

    def mean(self, heads: slice, nearest: Tensor, num_keys: Tensor) -> Tensor:
        """``(H, M, n)`` float32: over so many keys ``(H, M)``, the nearest of them at distances ``(n,)``."""
        last = (nearest + num_keys[..., None]).clamp(max=self.values.shape[1])  # (H, M, n)
        sums = self._sums[heads]
        total = sums.gather(1, last.flatten(1)).view(last.shape) - sums[:, None, nearest.clamp(max=sums.shape[1] - 1)]
        return (total / num_keys.clamp(min=1)[..., None]).float()


class KeysThatMatter(NamedTuple):
    """What each block of queries must read, ``(H, M)`` int64 each.

    Attributes:
        first_blocks: The first block of keys.
        reaches: Keys at this distance or beyond need not be looked at.
    """

    first_blocks: Tensor
    reaches: Tensor


def keys_that_matter(query: Tensor, key: Tensor, bias: DistanceBias, heads: slice, scaling: float) -> KeysThatMatter:
    """Find them for some heads.

    Args:
        query: ``(B, H, Q, d)`` of these heads, the last Q of K tokens.
        key: ``(B, H, K, d)`` of these heads.
        bias: Of all heads.
        heads: Which.
        scaling: What multiplies ``q . k``.
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
    # The sum only grows, so that the blocks which may be left out are those before the first that may not.
    rounding = left_out.shape[-1] * torch.finfo(left_out.dtype).eps + _ROUNDING
    first_blocks = (left_out <= bias.tolerance / 2 * (1 - rounding)).sum(-1)

    is_read = (block >= first_blocks[..., None]) & (blocks_apart >= 0)
    longest_read = torch.where(is_read, longest_key[:, None], 0.0).amax(-1)
    margins = (longest_query * longest_read - least_known).nan_to_num(nan=torch.inf)
    return KeysThatMatter(first_blocks, bias.reaches(heads, margins))


def largest_margins(
    query: Tensor, key: Tensor, bias: DistanceBias, scaling: float, is_one_text: bool = True
) -> Tensor:
    """By how many nats a key's content can outdo what a query is known to divide by: ``(H,)``, the largest of all.

    Args:
        query: ``(B, H, Q, d)``, the last Q of K tokens.
        key: ``(B, H, K, d)``.
        bias: Of these heads.
        scaling: What multiplies ``q . k``.
        is_one_text: Whether a query is sure to see all keys before it.
    """
    query_norm, key_norm, known = _bounds(query, key, bias, slice(None), scaling, is_one_text)
    longest = key_norm.cummax(-1).values[..., key.shape[2] - query.shape[2] :]
    return (query_norm * longest - known).nan_to_num(nan=torch.inf).amax((0, 2))


def _bounds(
    query: Tensor, key: Tensor, bias: DistanceBias, heads: slice, scaling: float, is_one_text: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """``a |q|`` ``(B, H, Q)``, ``|k'|`` ``(B, H, K)``, and the log of what each query at least divides by."""
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
    """``(B, H, Q)``: log of n plus the mean score of n keys, those of some whole blocks before the query's own.

    Args:
        query: ``(B, H, Q, d)``.
        sums: ``(B, H, N, d)`` float64, of the keys up to the end of each whole block.
        bias: Of all heads.
        heads: Which.
        first_block: Whole blocks before the first query.
        scaling: What multiplies ``q . k``.

    Returns:
        -inf without such blocks.
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
    """``(H, K)`` with zeros in front, so that after the keys before the first query a block ends."""
    return F.pad(norms, (-num_before % BLOCK_TOKENS, 0))


def _blocks(states: Tensor, fill: float, dim: int = -1) -> Tensor:
    """Cut dimension ``dim`` of T tokens into ``(M, 64)``, filled up."""
    missing = -states.shape[dim] % BLOCK_TOKENS
    if missing:
        shape = list(states.shape)
        shape[dim] = missing
        states = torch.cat((states, states.new_full(shape, fill)), dim)
    return states.unflatten(dim, (-1, BLOCK_TOKENS))
