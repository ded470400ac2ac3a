# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""The table of attention back ends, and how a position bias gets into each. Travels to the Hub.

Shapes: B batch (or 1, where all rows agree), H heads, Q queries, K keys.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface


# This model's own view of the registry: an entry set here changes a back end for AlibiGPT only.
ALL_ATTENTION_FUNCTIONS = AttentionInterface()


class AttentionContext(NamedTuple):
    """Who sees whom, and how far apart; the same for every layer of a forward.

    Attributes:
        mask: ``(B, 1 or H, Q, K)``: bool, True where a query sees a key, or additive, the dtype's minimum or -inf
            where it does not; None means plain causal attention among the queries themselves.
        query_positions: ``(B, Q)`` int64, tokens.
        key_positions: ``(B, K)`` int64, tokens.
        dtype: What attention computes in.
    """

    mask: Tensor | None
    query_positions: Tensor
    key_positions: Tensor
    dtype: torch.dtype


BiasFunction = Callable[[Tensor, Tensor, torch.dtype], Tensor | None]


def folded_mask(context: AttentionContext, bias: BiasFunction | None) -> Tensor | None:
    """Mask and bias as one additive mask, which every dense attention function takes.

    The bias is computed from relative distances in float32 (float64 in a float64 model) and only then cast: absolute
    positions times slopes would collide in bfloat16.

    Args:
        context: Mask and positions.
        bias: From query positions, key positions and a dtype to ``(B, H, Q, K)``; None for methods without.

    Returns:
        ``(B, H, Q, K)`` of the dtype attention computes in; the mask unchanged where there is nothing to add.
    """
    mask = context.mask
    if bias is None:
        return mask
    if mask is None:
        raise ValueError("a position bias needs an explicit attention mask, got None")
    score = bias(context.query_positions, context.key_positions, torch.promote_types(context.dtype, torch.float32))
    is_visible = mask
    if mask.dtype != torch.bool:
        is_visible = mask > torch.finfo(mask.dtype).min
        score = score + mask
    return torch.where(is_visible, score, torch.finfo(context.dtype).min).to(context.dtype)


# Back-end name -> how the bias reaches its attention function. The functions themselves are those of transformers,
# except `eager`, which stands beside the model as the definition of correct.
ATTENTION_BACKENDS: dict[str, Callable[[AttentionContext, BiasFunction | None], Tensor | None]] = {
    "eager": folded_mask,
    "sdpa": folded_mask,
    "paged|eager": folded_mask,
}


def attention_backend(name: str) -> Callable[[AttentionContext, BiasFunction | None], Tensor | None]:
    """Entry of the table.

    Raises:
        ValueError: The back end is none of the table's, and would run without the position bias.
    """
    if name not in ATTENTION_BACKENDS:
        raise ValueError(
            f"attention back end {name!r} would drop the position bias silently; AlibiGPT runs on: "
            f"{', '.join(ATTENTION_BACKENDS)}"
        )
    return ATTENTION_BACKENDS[name]
