# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Blocks of keys that blocks of queries read, for torch's flex attention. Travels to the Hub.

Counted from a few vectors: no matrix of queries by keys is made. For banded attention, the first block that can matter
is found for every row, head and block of queries at once, without waiting for the device. The bound is that of
:mod:`~modeling_alibi_gpt.attention_bounds`, with the longest key of a block standing for all its keys.

Shapes: B batch (or 1, where all rows agree), H heads (or 1), Q queries, K keys, d head size, M and N blocks of queries
and keys. Queries are the last Q of K tokens.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask


BLOCK_TOKENS = 128
# Float32 sums of a few hundred products are good to this part of their largest possible value.
_ROUNDING = 2**-14


def run_blocks(q_len: int, kv_len: int, device: torch.device, first_keys: Tensor | None = None) -> BlockMask:
    """The blocks of queries that see one run of keys each, which ends with their own.

    Args:
        q_len: Q.
        kv_len: K.
        device: Of the attention.
        first_keys: ``(B, Q)`` int64: the first key that a query sees; None for the first of all.
    """
    return _block_mask(_run_lists(q_len, kv_len, device, first_keys), q_len, kv_len, device, first_keys)


def band_blocks(
    query: Tensor, key: Tensor, slopes: Tensor, scaling: float, tolerance: float, first_keys: Tensor | None = None
) -> BlockMask:
    """The same without the blocks of keys that cannot matter to a block of queries.

    Args:
        query: ``(B, H, Q, d)``.
        key: ``(B, H, K, d)``.
        slopes: ``(H,)``, nats per token.
        scaling: What multiplies ``q . k``.
        tolerance: Largest weight that a query may lose.
        first_keys: ``(1 or B, Q)`` int64: the first key that a query sees; None for the first of all.
    """
    lists = _band_lists if query.device.type == "cpu" or torch.compiler.is_compiling() else _compiled_band_lists()
    with torch.no_grad():
        found = lists(query.detach(), key.detach(), slopes.detach().float(), scaling, tolerance, first_keys)
    return _block_mask(found, query.shape[2], key.shape[2], query.device, first_keys)


@functools.cache
def _compiled_band_lists() -> Callable[..., list[Tensor]]:
    """Uncompiled, it would write several copies of all queries and keys, by some hundred kernels."""
    return torch.compile(_band_lists, fullgraph=True)


def _band_lists(
    query: Tensor, key: Tensor, slopes: Tensor, scaling: float, tolerance: float, first_keys: Tensor | None
) -> list[Tensor]:
    first_blocks = first_blocks_that_matter(query, key, slopes, scaling, tolerance, first_keys)
    return _run_lists(query.shape[2], key.shape[2], query.device, first_keys, first_blocks)


def _block_mask(
    lists: list[Tensor], q_len: int, kv_len: int, device: torch.device, first_keys: Tensor | None
) -> BlockMask:
    fields = [f"{name}_{part}" for name in ("kv", "full_kv", "q", "full_q") for part in ("num_blocks", "indices")]
    return BlockMask(
        seq_lengths=(q_len, kv_len),
        **dict(zip(fields, lists, strict=True)),
        BLOCK_SIZE=(BLOCK_TOKENS, BLOCK_TOKENS),
        mask_mod=_run_mask_mod(kv_len - q_len, device, first_keys),
    )


def _run_lists(
    q_len: int, kv_len: int, device: torch.device, first_keys: Tensor | None, first_blocks: Tensor | None = None
) -> list[Tensor]:
    """Numbers and lists of partial and full blocks of keys ``(B, H, M)`` and ``(B, H, M, N)``, and of queries.

    Blocks of keys before ``first_blocks`` ``(B, H, M)`` are left out.
    """
    offset = kv_len - q_len
    num_query_blocks, num_key_blocks = _num_blocks(q_len), _num_blocks(kv_len)
    first_own = offset + BLOCK_TOKENS * torch.arange(num_query_blocks, device=device)[:, None]  # (M, 1)
    last_own = (first_own + BLOCK_TOKENS - 1).clamp(max=kv_len - 1)
    number = torch.arange(num_key_blocks, device=device)
    first, last = BLOCK_TOKENS * number, BLOCK_TOKENS * (number + 1) - 1
    is_read, is_full = (first <= last_own)[None, None], (last <= first_own)[None, None]  # (1, 1, M, N)
    missing = num_query_blocks * BLOCK_TOKENS - q_len
    if missing:
        # A block that is cut short has no full blocks of keys, as if its missing queries saw nothing.
        is_full = is_full & (torch.arange(num_query_blocks, device=device)[:, None] < num_query_blocks - 1)
    if first_keys is not None:
        by_block = F.pad(first_keys, (0, missing), value=kv_len).unflatten(-1, (num_query_blocks, BLOCK_TOKENS))
        is_read = is_read & (last >= by_block.amin(-1)[:, None, :, None])
        is_full = is_full & (first >= by_block.amax(-1)[:, None, :, None])
    if first_blocks is not None:
        is_read = is_read & (number >= first_blocks[..., None])
    is_full = is_full & is_read
    is_partial = is_read & ~is_full
    parts = (is_partial, is_full, is_partial.mT, is_full.mT)
    return [tensor for part in parts for tensor in _listed(part)]


def _run_mask_mod(
    offset: int, device: torch.device, first_keys: Tensor | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a query sees a key, within the blocks that are read."""
    shift = tokens_before(offset, device)
    if first_keys is None:
        return lambda row, head, query, key: key <= query + shift
    num_rows = first_keys.shape[0]
    first_keys = first_keys.int()
    return lambda row, head, query, key: (key >= first_keys[row % num_rows, query]) & (key <= query + shift)


def tokens_before(offset: int, device: torch.device) -> Tensor | int:
    """A number of tokens for a kernel to add: a tensor where it changes from call to call, lest each be compiled."""
    return 0 if offset == 0 else torch.full((), offset, device=device, dtype=torch.int32)


def _listed(is_member: Tensor) -> tuple[Tensor, Tensor]:
    """Of each line of ``(..., N)``: how many members it has ``(...)``, and their numbers first ``(..., N)``, int32."""
    num_columns = is_member.shape[-1]
    order = is_member.cumsum(-1, dtype=torch.int32)
    # What is no member is written beyond the end.
    slots = torch.where(is_member, order - 1, num_columns).long()
    numbers = torch.arange(num_columns, device=is_member.device, dtype=torch.int32)
    indices = numbers.new_zeros(*is_member.shape[:-1], num_columns + 1)
    indices.scatter_(-1, slots, numbers.expand(is_member.shape))
    return order[..., -1].contiguous(), indices[..., :num_columns].contiguous()


def first_blocks_that_matter(
    query: Tensor, key: Tensor, slopes: Tensor, scaling: float, tolerance: float, first_keys: Tensor | None = None
) -> Tensor:
    """``(B, H, M)`` int64: all keys before this block have at most ``tolerance`` of the weight of any query.

    Args:
        query: ``(B, H, Q, d)``.
        key: ``(B, H, K, d)``.
        slopes: ``(H,)`` float32, nats per token.
        scaling: What multiplies ``q . k``.
        tolerance: Largest weight that a query may lose.
        first_keys: ``(1 or B, Q)`` int64: the first key that a query sees; None for the first of all.
    """
    longest_query, known, longest_key = _block_bounds(query, key, slopes, scaling, first_keys)
    offset = key.shape[2] - query.shape[2]
    first_query = offset + BLOCK_TOKENS * torch.arange(longest_query.shape[-1], device=query.device)[:, None]
    last_key = BLOCK_TOKENS * torch.arange(1, longest_key.shape[-1] + 1, device=query.device) - 1
    distance = first_query - last_key  # (M, N)
    # The keys of a block add up to no more than as many of its nearest, nor than all that lie beyond it.
    most_keys = (-torch.log(-torch.expm1(-slopes))).clamp(max=math.log(BLOCK_TOKENS))[:, None, None]
    log_weight = longest_query[..., None] * longest_key[:, :, None] - slopes[:, None, None] * distance
    log_weight = log_weight - known[..., None] + most_keys
    left_out = log_weight.masked_fill(distance <= 0, torch.inf).exp().cumsum(-1)
    # The sum only grows, so that the blocks which may be left out are those before the first that may not.
    rounding = left_out.shape[-1] * torch.finfo(left_out.dtype).eps
    return (left_out <= tolerance * (1 - rounding)).sum(-1)


def _block_bounds(
    query: Tensor, key: Tensor, slopes: Tensor, scaling: float, first_keys: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Largest ``a |q|`` ``(B, H, M)``, the least that a query divides by, as a log ``(B, H, M)``, and largest ``|k'|``
    ``(B, H, N)``, of each block."""
    q_len, offset = query.shape[2], key.shape[2] - query.shape[2]
    key = key.float()
    centre = key.mean(2, keepdim=True)
    key = key - centre
    key_norm = key.square().sum(-1).sqrt()
    own_key = _blocks(key[:, :, offset:])  # (B, H, M, 128, d)
    key_norm = _blocks(key_norm[..., None])[..., 0].amax(-1)  # (B, H, N)
    query = _blocks(query.float())
    query_norm = query.square().sum(-1).sqrt() * scaling  # (B, H, M, 128)
    largest = key_norm.amax(-1, keepdim=True) + centre.square().sum(-1).sqrt()  # (B, H, 1)
    known = (query * own_key).sum(-1) * scaling
    means, distance, num_keys = _means_before(key, slopes, q_len, first_keys)
    content = (query * means[:, :, :, None]).sum(-1) * scaling
    before = content + num_keys.log()[..., None] - slopes[:, None, None] * distance
    known = torch.maximum(known, before) - query_norm * largest[..., None] * _ROUNDING
    is_missing = torch.arange(query.shape[2] * BLOCK_TOKENS, device=key.device).unflatten(0, query.shape[2:4]) >= q_len
    return query_norm.amax(-1), known.masked_fill(is_missing, torch.inf).amin(-1), key_norm


def _means_before(key: Tensor, slopes: Tensor, q_len: int, first_keys: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Means ``(B, H, M, d)`` of the keys in some whole blocks before each block of queries, all of which these see;
    the distances to them ``(B, H, M, 128)``, in the mean; and their number ``(B, H, M)``, 0 where there is none.

    ``log n - s n / 2`` is largest at n = 2 / s, which decides how many blocks are taken.
    """
    offset, device = key.shape[2] - q_len, key.device
    sums = F.pad(_blocks(key).sum(3).double().cumsum(2), (0, 0, 1, 0))  # (B, H, N + 1, d): of all keys before a block
    first_query = offset + BLOCK_TOKENS * torch.arange(_num_blocks(q_len), device=device)  # (M,)
    stops = first_query // BLOCK_TOKENS
    starts = stops - (2 / slopes / BLOCK_TOKENS).round().clamp(min=1).long()[:, None]  # (H, M)
    starts = starts.clamp(min=0)[None]
    if first_keys is not None:
        last_first = _blocks(first_keys[:, None, :, None])[..., 0].amax(-1)  # (B, 1, M)
        starts = torch.maximum(starts, (last_first + BLOCK_TOKENS - 1) // BLOCK_TOKENS)
    starts = torch.minimum(starts, stops).expand(key.shape[0], key.shape[1], -1)
    num_keys = BLOCK_TOKENS * (stops - starts).float()
    sums_at_start = sums.gather(2, starts[..., None].expand(-1, -1, -1, key.shape[-1]))
    means = ((sums[:, :, stops] - sums_at_start) / num_keys.clamp(min=1)[..., None]).float()
    mean_position = (BLOCK_TOKENS * (starts + stops) - 1) / 2  # (B, H, M)
    positions = first_query[:, None] + torch.arange(BLOCK_TOKENS, device=device)  # (M, 128)
    return means, positions - mean_position[..., None], num_keys


def _blocks(states: Tensor) -> Tensor:
    """Cut the tokens of ``(B, H, T, n)`` into ``(B, H, M, 128, n)``, filled up with zeros."""
    num_blocks = _num_blocks(states.shape[2])
    missing = BLOCK_TOKENS * num_blocks - states.shape[2]
    return F.pad(states, (0, 0, 0, missing)).unflatten(2, (num_blocks, BLOCK_TOKENS))


def _num_blocks(num_tokens: int) -> int:
    return (num_tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS
