# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Block masks for torch's flex attention, built without a query-by-key matrix. Exported to the Hub.

For banded attention, the first block of keys that can matter is computed for all rows, heads and blocks of queries at
once, without device synchronization. The bound is that of :mod:`~modeling_alibi_gpt.attention_bounds`, where each
block of keys is represented by its longest key.

Shapes: B batch (or 1 if all rows agree), H heads (or 1), Q queries, K keys, d head size, M and N blocks of queries
and keys. Queries are the last Q of K tokens.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask


BLOCK_TOKENS = 128
# One process may need many graphs of one function: training, prefill and single queries, each with one row or several,
# with or without padding, in two dtypes. Torch's default limit of eight is soon reached.
_MAX_GRAPHS = 64
# Error bound of a float32 sum of a few hundred products, relative to its largest possible value.
_ROUNDING = 2**-14


def run_blocks(q_len: int, kv_len: int, device: torch.device, first_keys: Tensor | None = None) -> BlockMask:
    """Block mask for queries that each see one contiguous run of keys, ending with their own.

    Args:
        q_len: Q, tokens.
        kv_len: K, tokens.
        device: Device of the attention.
        first_keys: ``(B, Q)`` int64, the first key that each query sees; None means key 0.
    """
    return _block_mask(_run_lists(q_len, kv_len, device, first_keys), q_len, kv_len, device, first_keys)


def band_blocks(
    query: Tensor, key: Tensor, slopes: Tensor, scaling: float, tolerance: float, first_keys: Tensor | None = None
) -> BlockMask:
    """:func:`run_blocks` without the blocks of keys that cannot matter to a block of queries.

    Args:
        query: ``(B, H, Q, d)``.
        key: ``(B, H, K, d)``.
        slopes: ``(H,)``, nats per token.
        scaling: Factor of ``q . k``.
        tolerance: Largest attention weight that may be left out per query.
        first_keys: ``(1 or B, Q)`` int64, the first key that each query sees; None means key 0.
    """
    lists = _band_lists if query.device.type == "cpu" or torch.compiler.is_compiling() else _compiled_band_lists()
    with torch.no_grad():
        found = lists(query.detach(), key.detach(), slopes.detach().float(), scaling, tolerance, first_keys)
    return _block_mask(found, query.shape[2], key.shape[2], query.device, first_keys)


@functools.cache
def _compiled_band_lists() -> Callable[..., list[Tensor]]:
    """Compiled, because eager mode launches about a hundred kernels and copies all queries and keys several times."""
    return compiled(_band_lists, fullgraph=True)


def compiled(function: Callable[..., Any], fullgraph: bool) -> Callable[..., Any]:
    """``torch.compile`` for as many kinds of shapes, dtypes and masks as one process may need.

    Args:
        function: Any function.
        fullgraph: Whether to fail where torch would fall back to eager mode, instead of falling back.
    """
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return torch.compile(function, fullgraph=fullgraph, recompile_limit=_MAX_GRAPHS)
    run = torch.compile(function, fullgraph=fullgraph)

    def run_within_limit(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=_MAX_GRAPHS):
            return run(*args, **kwargs)

    return run_within_limit


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
    """Counts ``(B, H, M)`` and indices ``(B, H, M, N)`` of partial and full key blocks, then the same for queries.

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
        # A truncated block of queries has no full blocks of keys, as if its missing queries saw nothing.
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
    """Mask function: whether a query sees a key, within the blocks that are read."""
    shift = tokens_before(offset, device)
    if first_keys is None:
        return lambda row, head, query, key: key <= query + shift
    num_rows = first_keys.shape[0]
    first_keys = first_keys.int()
    return lambda row, head, query, key: (key >= first_keys[row % num_rows, query]) & (key <= query + shift)


def tokens_before(offset: int, device: torch.device) -> Tensor | int:
    """The offset for a kernel to add: 0, or a tensor, so that a changing value does not trigger recompilation."""
    return 0 if offset == 0 else torch.full((), offset, device=device, dtype=torch.int32)


def _listed(is_member: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of ``(..., N)``: the number of members ``(...)`` and their indices first ``(..., N)``, int32."""
    num_columns = is_member.shape[-1]
    order = is_member.cumsum(-1, dtype=torch.int32)
    # Non-members are written to one extra column, which is dropped.
    slots = torch.where(is_member, order - 1, num_columns).long()
    numbers = torch.arange(num_columns, device=is_member.device, dtype=torch.int32)
    indices = numbers.new_zeros(*is_member.shape[:-1], num_columns + 1)
    indices.scatter_(-1, slots, numbers.expand(is_member.shape))
    return order[..., -1].contiguous(), indices[..., :num_columns].contiguous()


def first_blocks_that_matter(
    query: Tensor, key: Tensor, slopes: Tensor, scaling: float, tolerance: float, first_keys: Tensor | None = None
) -> Tensor:
    """First block to read, ``(B, H, M)`` int64: all earlier keys get at most ``tolerance`` of a query's weight.

    Args:
        query: ``(B, H, Q, d)``.
        key: ``(B, H, K, d)``.
        slopes: ``(H,)`` float32, nats per token.
        scaling: Factor of ``q . k``.
        tolerance: Largest attention weight that may be left out per query.
        first_keys: ``(1 or B, Q)`` int64, the first key that each query sees; None means key 0.
    """
    longest_query, known, longest_key = _block_bounds(query, key, slopes, scaling, first_keys)
    offset = key.shape[2] - query.shape[2]
    first_query = offset + BLOCK_TOKENS * torch.arange(longest_query.shape[-1], device=query.device)[:, None]
    last_key = BLOCK_TOKENS * torch.arange(1, longest_key.shape[-1] + 1, device=query.device) - 1
    distance = first_query - last_key  # (M, N)
    # A block has at most 128 times the weight of its nearest key, and at most the geometric sum from there on.
    most_keys = (-torch.log(-torch.expm1(-slopes))).clamp(max=math.log(BLOCK_TOKENS))[:, None, None]
    log_weight = longest_query[..., None] * longest_key[:, :, None] - slopes[:, None, None] * distance
    log_weight = log_weight - known[..., None] + most_keys
    left_out = log_weight.masked_fill(distance <= 0, torch.inf).exp().cumsum(-1)
    # The sum is monotone, so this counts the leading blocks that may be left out.
    rounding = left_out.shape[-1] * torch.finfo(left_out.dtype).eps
    return (left_out <= tolerance * (1 - rounding)).sum(-1)


def _block_bounds(
    query: Tensor, key: Tensor, slopes: Tensor, scaling: float, first_keys: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Per block: largest ``a |q|`` ``(B, H, M)``, lower bound of the log of the softmax denominator ``(B, H, M)``, and
    largest ``|k'|`` ``(B, H, N)``."""
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
    """Mean ``(B, H, M, d)`` of the keys in some whole blocks that precede a block of queries and that all its queries
    see, the mean distance to them ``(B, H, M, 128)``, and their number ``(B, H, M)``, which may be 0.

    The number of blocks follows from ``log n - s n / 2``, which is largest at n = 2 / s.
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
    """Split the tokens of ``(B, H, T, n)`` into blocks ``(B, H, M, 128, n)``, padded with zeros."""
    num_blocks = _num_blocks(states.shape[2])
    missing = BLOCK_TOKENS * num_blocks - states.shape[2]
    return F.pad(states, (0, 0, 0, missing)).unflatten(2, (num_blocks, BLOCK_TOKENS))


def _num_blocks(num_tokens: int) -> int:
    return (num_tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS
