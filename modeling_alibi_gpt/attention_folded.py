# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Attention with mask and bias folded into one tensor, for short texts and biases without strips. Exported to the Hub.

The mask is built once for all layers. It hides keys whose bias makes their weight negligible, because their
exponentials would be subnormal numbers, which some processors compute a hundred times slower. This assumes a bound on
how far content scores differ, at most ``2 a |q| |k|``. A layer that exceeds the bound uses the unpruned mask.

Shapes: B batch, H heads, Q queries, K keys, d head size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


# Content scores of most layers differ by less. A larger bound would hide fewer keys and leave subnormal numbers.
_CONTENT_NATS = 40.0


class FoldedAttention:
    """A folded mask, and the same mask with keys of negligible weight hidden.

    Args:
        mask: ``(B or 1, H or 1, Q, K)``, nats, the dtype's minimum where a query does not see a key.
        near_mask: Mask of the same shape from :func:`hide_far`.
    """

    def __init__(self, mask: Tensor, near_mask: Tensor) -> None:
        self.mask, self.near_mask = mask, near_mask

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Return ``(B, H, Q, d)`` for queries ``(B, H, Q, d)`` and for keys and values ``(B, H, K, d)``."""
        longest = (states.detach().norm(dim=-1).amax().item() for states in (query, key))
        keeps_bound = 2 * scaling * math.prod(longest) <= _CONTENT_NATS
        mask = self.near_mask if keeps_bound else self.mask
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)


def hide_far(mask: Tensor, tolerance: float) -> Tensor | None:
    """Hide keys whose weights total less than the tolerance; None if there are no such keys.

    Args:
        mask: ``(B or 1, H or 1, Q, K)``, nats, the dtype's minimum where a query does not see a key.
        tolerance: Largest weight to leave out per query if its content scores differ by at most ``_CONTENT_NATS``.
    """
    least = torch.finfo(mask.dtype).min
    # One nat covers the rounding of bfloat16.
    depth = _CONTENT_NATS - math.log(tolerance) + math.log(mask.shape[-1]) + 1.0
    values = mask.detach()
    is_far = values < values.amax(-1, keepdim=True) - depth
    if not (is_far & (values > least)).any():
        return None
    return mask.masked_fill(is_far, least)
