# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""ALiBi attention over a cache in which each group of heads keeps its own window. Exported to the Hub.

Shapes: B batch, H query heads, G key/value heads per group, n query heads per key/value head, Q queries, K keys.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_context import AttentionContext


class WindowedStates(NamedTuple):
    """Keys or values of a layer; each group of heads keeps only the most recent.

    Attributes:
        heads: Key/value heads of each group.
        states: ``(B, G, K, d)`` for each group, ending with the last token.
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
    """Attention of new tokens over the cached window of each group of heads.

    Args:
        context: Visibility; its keys are those of the whole text.
        slopes: ``(H,)``, nats per token.
        query: ``(B, H, Q, d)``.
        key: Keys of the layer.
        value: Values of the layer.
        scaling: Factor of ``q . k``.
        dropout: Dropout probability.

    Returns:
        ``(B, H, Q, d)``.
    """
    shared = query.shape[1] // key.heads[-1].stop
    outputs = []
    for group, keys, values in zip(key.heads, key.states, value.states, strict=True):
        heads = slice(group.start * shared, group.stop * shared)
        bias = _bias(context, slopes[heads], keys.shape[2]).to(query.dtype)
        # Heads that share a key are folded into the query dimension, so that no key is copied.
        folded = query[:, heads].unflatten(1, (-1, shared)).flatten(2, 3)  # (B, G, n Q, d)
        bias = bias.unflatten(1, (-1, shared)).flatten(2, 3)  # (B or 1, G, n Q, K)
        output = F.scaled_dot_product_attention(
            folded, keys, values, attn_mask=bias.expand(query.shape[0], -1, -1, -1), dropout_p=dropout, scale=scaling
        )
        outputs.append(output.unflatten(2, (shared, -1)).flatten(1, 2))
    return torch.cat(outputs, dim=1)


def _bias(context: AttentionContext, slopes: Tensor, num_keys: int) -> Tensor:
    """Bias ``(B or 1, H, Q, K)`` of the last ``num_keys`` keys; the dtype's minimum where a key is not visible.

    On the device of the slopes, which is that of the layer.
    """
    positions = context.query_positions[:, :, None], context.key_positions[:, None, -num_keys:]
    distance = (positions[0] - positions[1])[:, None].to(slopes.device)  # (B, 1, Q, K)
    is_visible = distance >= 0 if context.is_whole else context.mask()[..., -num_keys:].to(slopes.device)
    bias = -slopes[:, None, None] * distance
    return torch.where(is_visible, bias, torch.finfo(context.dtype).min)
