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

from .attention_blocks import band_blocks
from .attention_bounds import DistanceBias, largest_margins
from .attention_context import AttentionContext
from .attention_flex import distance_score_mod, flex, visible_blocks
from .attention_strips import StripAttention
from .attention_tiles import linear_biases
from .attention_windows import WindowedStates, attend_windows


# Flex attention reads all of a shorter text sooner than one finds out what to leave out.
MIN_BLOCKS_TOKENS = 1024
# A margin beyond this means that every key must be read; it keeps infinite scores out of integer arithmetic.
_ENDLESS_NATS = 1e6
# Heads go together while their widest window is at most this much wider than their narrowest.
_WIDTH_RATIO = 1.25


class BandedAttention:
    """ALiBi over the keys that can matter, found anew from the queries and keys of every layer.

    Args:
        context: Visibility.
        slopes: ``(H,)``, nats per token.
        tolerance: Largest weight that a query may lose.
    """

    def __init__(self, context: AttentionContext, slopes: Tensor, tolerance: float) -> None:
        self.context, self.slopes, self.tolerance = context, slopes, tolerance
        self.segments = context.segments()
        self.strips: StripAttention | None = None
        if context.keeps_windows and not context.is_whole:
            context.mask()  # made now, for a layer's update moves the cache on
        has_windows = context.keeps_windows and context.q_len < context.kv_len
        if slopes.device.type == "cpu" and not has_windows:
            # Made now, for what is made within a layer is made twice where activations are checkpointed.
            self.strips = StripAttention(context, tolerance, slopes)

    def attend(self, query: Tensor, key: Any, value: Any, scaling: float, dropout: float) -> Tensor:
        slopes = self.slopes.to(query.device)
        if isinstance(key, WindowedStates):
            return attend_windows(self.context, slopes, query, key, value, scaling, dropout)
        if query.device.type != "cpu" and dropout == 0.0:
            return self._attend_blocks(query, key, value, slopes, scaling)
        strips = self.strips or StripAttention(self.context, self.tolerance, slopes)
        return strips.attend(query, key, value, scaling, dropout)

    def _attend_blocks(self, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, scaling: float) -> Tensor:
        """By flex attention, whose kernels skip whole blocks of keys."""
        if self.context.kv_len < MIN_BLOCKS_TOKENS:
            blocks = visible_blocks(self.context, query.device)
        else:
            blocks = band_blocks(query, key, slopes, scaling, self.tolerance, self.context.first_keys())
        score_mod = distance_score_mod(slopes, key.shape[2] - query.shape[2])
        return flex(query, key, value, score_mod, blocks, scaling)


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
