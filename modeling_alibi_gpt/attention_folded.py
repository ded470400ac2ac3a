# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Attention with mask and bias folded into one tensor, for short texts on a CPU. Travels to the Hub.

The mask is made once for all layers. Keys that a bias puts so far down that they cannot count are hidden in it, for
their exponentials would be subnormal numbers, which some processors compute a hundred times slower than others. That
they cannot count takes a bound on what contents win back, ``2 a |q| |k|`` at most; a layer that exceeds it has the
mask as it was.

Shapes: B batch, H heads, Q queries, K keys, d head size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


# What contents of most layers keep to. More would hide less, and leave subnormal numbers.
_CONTENT_NATS = 40.0


class FoldedAttention:
    """A folded mask, and the same without what is too far down to count.

    Args:
        mask: ``(B or 1, H or 1, Q, K)``, nats, the dtype's minimum where a query does not see a key.
        near_mask: Of the same shape, from :func:`hide_far`.
    """

    def __init__(self, mask: Tensor, near_mask: Tensor) -> None:
        self.mask, self.near_mask = mask, near_mask

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Output ``(B, H, Q, d)`` of queries ``(B, H, Q, d)``, and keys and values ``(B, H, K, d)``."""
        longest = (states.detach().norm(dim=-1).amax().item() for states in (query, key))
        keeps_bound = 2 * scaling * math.prod(longest) <= _CONTENT_NATS
        mask = self.near_mask if keeps_bound else self.mask
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)


def hide_far(mask: Tensor, tolerance: float) -> Tensor | None:
    """The mask without keys that weigh less than the tolerance of a query, all together; None where there are none.

    Args:
        mask: ``(B or 1, H or 1, Q, K)``, nats, the dtype's minimum where a query does not see a key.
        tolerance: Largest weight that a query may lose, if contents differ by ``_CONTENT_NATS`` at most.
    """
    least = torch.finfo(mask.dtype).min
    # One nat for what bfloat16 rounds.
    depth = _CONTENT_NATS - math.log(tolerance) + math.log(mask.shape[-1]) + 1.0
    values = mask.detach()
    is_far = values < values.amax(-1, keepdim=True) - depth
    if not (is_far & (values > least)).any():
        return None
    return mask.masked_fill(is_far, least)
