# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Banded ALiBi attention, which skips keys of provably negligible weight. Exported to the Hub.

``alibi_tolerance`` sets the limit; :mod:`~modeling_alibi_gpt.attention_bounds` contains the proof.

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


# For shorter texts, reading all keys with flex attention is faster than computing which to skip.
MIN_BLOCKS_TOKENS = 1024
# A margin this large means that every key must be read. The cap keeps infinities out of integer arithmetic.
_ENDLESS_NATS = 1e6
# Heads form one group while the widest window is at most this multiple of the narrowest.
_WIDTH_RATIO = 1.25


class BandedAttention:
    """ALiBi over the keys that can matter, which each layer determines from its queries and keys.

    Args:
        context: Visibility.
        slopes: ``(H,)``, nats per token.
        tolerance: Largest attention weight that may be left out per query.
    """

    def __init__(self, context: AttentionContext, slopes: Tensor, tolerance: float) -> None:
        self.context, self.slopes, self.tolerance = context, slopes, tolerance
        self.strips: StripAttention | None = None
        if context.keeps_windows and not context.is_whole:
            context.mask()  # must be built before a layer's update changes the length of the cache
        has_windows = context.keeps_windows and context.q_len < context.kv_len
        if slopes.device.type == "cpu" and not has_windows:
            # Built here because activation checkpointing would build it twice inside a layer.
            self.strips = StripAttention(context, tolerance, slopes)

    def attend(self, query: Tensor, key: Any, value: Any, scaling: float, dropout: float) -> Tensor:
        slopes = self.slopes.to(query.device)
        if isinstance(key, WindowedStates):
            return attend_windows(self.context, slopes, query, key, value, scaling, dropout)
        if query.device.type != "cpu" and dropout == 0.0:
            return self._attend_blocks(query, key, value, slopes, scaling)
        strips = self.strips if query.device == self.slopes.device else None
        strips = strips or StripAttention(self.context, self.tolerance, slopes)
        return strips.attend(query, key, value, scaling, dropout)

    def _attend_blocks(self, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, scaling: float) -> Tensor:
        """Use flex attention, whose kernels skip whole blocks of keys."""
        if self.context.kv_len < MIN_BLOCKS_TOKENS:
            blocks = visible_blocks(self.context, query.device)
        else:
            blocks = band_blocks(query, key, slopes, scaling, self.tolerance, self.context.first_keys(query.device))
        score_mod = distance_score_mod(slopes, key.shape[2] - query.shape[2])
        return flex(query, key, value, score_mod, blocks, scaling)


def similar_heads(windows: Sequence[int]) -> list[slice]:
    """Runs of adjacent heads whose widest window is at most a quarter wider than the narrowest."""
    edges = [0]
    for head in range(1, len(windows)):
        run = windows[edges[-1] : head + 1]
        if max(run) > _WIDTH_RATIO * max(1, min(run)):
            edges.append(head)
    return [slice(*edge) for edge in itertools.pairwise([*edges, len(windows)])]


def score_margins(query: Tensor, key: Tensor, slopes: Tensor, scaling: float) -> Tensor:
    """Bound how much a content score can exceed the log of a query's softmax denominator.

    Args:
        query: ``(B, H, Q, d)``, the last Q of K tokens.
        key: ``(B, H, K, d)``.
        slopes: ``(H,)``, nats per token.
        scaling: Factor of ``q . k``.

    Returns:
        ``(H,)`` float32, nats: the largest margin over all queries.
    """
    bias = DistanceBias(linear_biases(slopes.detach(), key.shape[2], torch.float32), tolerance=1.0)
    return largest_margins(query, key, bias, scaling).clamp(max=_ENDLESS_NATS)
