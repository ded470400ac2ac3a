# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""ALiBi attention over a cache in which every group of heads keeps a window of its own. Travels to the Hub.

Shapes: B batch, H query heads, G key/value heads of a group, n query heads that share one of them, Q queries, K keys.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_context import AttentionContext


class WindowedStates(NamedTuple):
    """Keys or values of a layer, of which each group of heads has only the most recent.

    Attributes:
        heads: Key/value heads of each group.
        states: ``(B, G, K, d)`` of each group; the last one is the last token's.
    """

    heads: tuple[slice, ...]
    states: tuple[Tensor, ...]


def attend_windows(
    context: AttentionContext,
    slopes: Tensor,
    query: Tensor,
    key: WindowedStates,
    value: WindowedStates,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of new tokens over what the cache kept for each group of heads.

    Args:
        context: Visibility; its keys are those of the whole text.
        slopes: ``(H,)``, nats per token.
        query: ``(B, H, Q, d)``.
        key: Of the layer.
        value: Of the layer.
        scaling: What multiplies ``q . k``.
        dropout: Probability.

    Returns:
        ``(B, H, Q, d)``.
    """
    shared = query.shape[1] // key.heads[-1].stop
    outputs = []
    for group, keys, values in zip(key.heads, key.states, value.states, strict=True):
        heads = slice(group.start * shared, group.stop * shared)
        bias = _bias(context, slopes[heads], keys.shape[2]).to(query.dtype)
        # Heads that share a key become further queries, so that no key is copied for them.
        folded = query[:, heads].unflatten(1, (-1, shared)).flatten(2, 3)  # (B, G, n Q, d)
        bias = bias.unflatten(1, (-1, shared)).flatten(2, 3)  # (B or 1, G, n Q, K)
        output = F.scaled_dot_product_attention(
            folded, keys, values, attn_mask=bias.expand(query.shape[0], -1, -1, -1), dropout_p=dropout, scale=scaling
        )
        outputs.append(output.unflatten(2, (shared, -1)).flatten(1, 2))
    return torch.cat(outputs, dim=1)


def _bias(context: AttentionContext, slopes: Tensor, num_keys: int) -> Tensor:
    """``(B or 1, H, Q, K)`` float32: of the last ``num_keys`` keys, the dtype's minimum where a query sees none."""
    positions = context.query_positions[:, :, None], context.key_positions[:, None, -num_keys:]
    distance = (positions[0] - positions[1])[:, None]  # (B, 1, Q, K)
    is_visible = distance >= 0 if context.is_whole else context.mask()[..., -num_keys:]
    bias = -slopes[:, None, None] * distance
    return torch.where(is_visible, bias, torch.finfo(context.dtype).min)
