# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Banded ALiBi attention: keys that provably cannot matter are never read. Travels to the Hub.

How much they may matter is the user's to say; :mod:`~modeling_alibi_gpt.attention_bounds` has the proof.

Shapes: B batch, H heads, Q queries, K keys, d head size.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .attention_bounds import BLOCK_TOKENS, DistanceBias, keys_that_matter, largest_margins
from .attention_context import AttentionContext
from .attention_flex import flex, run_blocks, slope_score_mod
from .attention_spans import Span
from .attention_strips import StripAttention
from .attention_tiles import linear_biases
from .attention_windows import WindowedStates, attend_windows


# A margin beyond this means that every key must be read; it keeps infinite scores out of integer arithmetic.
_ENDLESS_NATS = 1e6
# Heads go together while their widest window is at most this much wider than their narrowest.
_WIDTH_RATIO = 1.25


class BandedAttention:
    """ALiBi over the keys that can matter, found anew from the queries and keys of every layer.

    Args:
        context: Who sees whom.
        slopes: ``(H,)``, nats per token.
        tolerance: Largest weight that a query may lose.
    """

    def __init__(self, context: AttentionContext, slopes: Tensor, tolerance: float) -> None:
        self.context, self.slopes, self.tolerance = context, slopes, tolerance
        self.slope_values = slopes.tolist()  # once a forward, for it makes the host wait for a GPU
        self.spans = context.spans()
        # Made now, for what is made within a layer is made twice where activations are checkpointed.
        self.strips = StripAttention(context, tolerance, slopes) if slopes.device.type == "cpu" else None
        if context.keeps_windows and not context.is_whole:
            context.mask()  # made now, for a layer's update moves the cache on

    def attend(self, query: Tensor, key: Any, value: Any, scaling: float, dropout: float) -> Tensor:
        slopes = self.slopes.to(query.device)
        if isinstance(key, WindowedStates):
            return attend_windows(self.context, slopes, query, key, value, scaling, dropout)
        if query.device.type == "cuda" and dropout == 0.0:
            first_keys = banded_first_keys(query, key, self.slope_values, self.spans, scaling, self.tolerance)
            return flex_bands(query, key, value, slopes, first_keys, scaling)
        strips = self.strips or StripAttention(self.context, self.tolerance, slopes)
        return strips.attend(query, key, value, scaling, dropout)


def banded_first_keys(
    query: Tensor, key: Tensor, slopes: Sequence[float], spans: Sequence[Span], scaling: float, tolerance: float
) -> Tensor:
    """The same as the first key that each query reads, found without waiting for the device.

    Args:
        query: ``(B, H, Q, d)``, the last Q of K tokens.
        key: ``(B, H, K, d)``.
        slopes: H numbers, nats per token.
        spans: Who sees whom.
        scaling: What multiplies ``q . k``.
        tolerance: Largest weight that a query may lose.

    Returns:
        ``(B, H, Q)`` int64; its own key for a query in no span. One row where all rows agree.
    """
    num_rows, num_heads, q_len, _ = query.shape
    offset = key.shape[2] - q_len
    own_keys = torch.arange(offset, key.shape[2], device=query.device)
    agree = all(span.rows == slice(0, num_rows) for span in spans)
    first_keys = own_keys.repeat(1 if agree else num_rows, num_heads, 1)
    slopes_on_device = torch.tensor(slopes, dtype=torch.float32, device=query.device)
    bias = DistanceBias(linear_biases(slopes_on_device, key.shape[2], torch.float32), tolerance)
    for span in spans:
        queries, own = span.queries, own_keys[span.queries]
        keys = slice(span.first_key, queries.stop + offset)
        rows = span.rows, slice(0, num_heads)
        needed = keys_that_matter(query[(*rows, queries)], key[(*rows, keys)], bias, rows[1], scaling)
        block_start = span.first_key - (-(queries.start + offset - span.first_key) % BLOCK_TOKENS)
        first = block_start + BLOCK_TOKENS * needed.first_blocks
        first = first.repeat_interleave(BLOCK_TOKENS, dim=-1)[:, : own.shape[0]].clamp(min=span.first_key)
        first_keys[span.rows, :, queries] = torch.minimum(first, own)
    return first_keys


def flex_bands(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, first_keys: Tensor, scaling: float
) -> Tensor:
    """Attention ``(B, H, Q, d)`` with ALiBi, from the first key of each query ``(1 or B, H, Q)`` to its own."""
    kv_len = key.shape[2]
    slots = torch.arange(kv_len, device=query.device).expand(query.shape[0], -1)
    score_mod = slope_score_mod(slopes, slots[:, kv_len - query.shape[2] :], slots)
    return flex(query, key, value, score_mod, run_blocks(first_keys, kv_len), scaling)


def similar_heads(windows: Sequence[int]) -> list[slice]:
    """Runs of neighbouring heads whose windows differ by at most a quarter, so that they can be read together."""
    edges = [0]
    for head in range(1, len(windows)):
        run = windows[edges[-1] : head + 1]
        if max(run) > _WIDTH_RATIO * max(1, min(run)):
            edges.append(head)
    return [slice(*edge) for edge in itertools.pairwise([*edges, len(windows)])]


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
    bias = DistanceBias(linear_biases(slopes.detach(), key.shape[2], torch.float32), tolerance=1.0)
    return largest_margins(query, key, bias, scaling).clamp(max=_ENDLESS_NATS)
