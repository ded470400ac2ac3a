# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Torch's flex attention, with biases computed in the kernel and skipped key blocks. Exported to the Hub.

On CUDA the kernels are compiled, never materialize a query-by-key matrix, and compute gradients, including those of
the slopes. On a CPU torch runs the reference implementation: one matrix per head, no gradients. Use it for tests only.

Shapes: B batch (or 1 if all rows agree), H heads, Q queries, K keys, d head size, N blocks of queries.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from .attention_blocks import compiled, run_blocks, tokens_before
from .attention_context import AttentionContext


# The smallest of its kernels on a GPU.
_MIN_HEAD_DIM = 16

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class FlexAttention:
    """Attention over the keys that each query sees, with the layer's bias or none.

    Args:
        context: Visibility and positions.
        slopes: ``(1 or B, 1 or Q, H)``, nats per token, if the bias is ``-slope * distance``.
        bias: ``(1 or B, H, Q, K)``, nats, for any other bias.

    Raises:
        ValueError: The caller passed a 4D mask.
    """

    def __init__(self, context: AttentionContext, slopes: Tensor | None = None, bias: Tensor | None = None) -> None:
        if context.slots is None and context.segments() is None:
            raise ValueError("attention back end 'flex_attention' supports 2D masks, got a 4D mask: use sdpa or eager")
        self.context, self.slopes, self.bias = context, slopes, bias
        self._blocks: dict[torch.device, BlockMask] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        if query.device not in self._blocks:
            self._blocks[query.device] = visible_blocks(self.context, query.device)
        return flex(query, key, value, self._score_mod(query.device), self._blocks[query.device], scaling, dropout)

    def _score_mod(self, device: torch.device) -> ScoreMod | None:
        num_rows = self.context.num_rows
        if self.bias is not None:
            bias = self.bias.to(device).expand(num_rows, -1, -1, -1)
            return lambda score, row, head, query, key: score + bias[row, head, query, key]
        if self.slopes is None:
            return None
        query_positions, key_positions = (
            positions.to(device).expand(num_rows, -1)
            for positions in (self.context.query_positions, self.context.key_positions)
        )
        if self.slopes.shape[:2] == (1, 1):
            slopes = self.slopes[0, 0].to(device)
            if self.context.segments() is not None:
                return distance_score_mod(slopes, self.context.kv_len - self.context.q_len)
            return slope_score_mod(slopes, query_positions, key_positions)
        slopes = self.slopes.to(device).expand(num_rows, self.context.q_len, -1)

        def score_mod(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return score + slopes[row, query, head] * (key_positions[row, key] - query_positions[row, query])

        return score_mod


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None,
    block_mask: BlockMask,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """Torch's flex attention, compiled except on a CPU.

    Args:
        query: ``(B, H, Q, d)``.
        key: ``(B, H, K, d)``, like ``value``.
        value: ``(B, H, K, d)``.
        score_mod: Maps a scaled score and its row, head, query and key to the biased score.
        block_mask: Visibility.
        scaling: Factor of ``q . k``.
        dropout: Must be 0.

    Returns:
        ``(B, H, Q, d)``.

    Raises:
        ValueError: Dropout is above 0, a gradient is required on a CPU, or d is below 16 elsewhere.
    """
    if dropout > 0.0:
        raise ValueError(
            f"flex attention has no dropout, got attention_dropout={dropout}: set it to 0 or use sdpa or eager"
        )
    if query.device.type != "cpu":
        if query.shape[-1] < _MIN_HEAD_DIM:
            raise ValueError(
                f"flex attention needs a head_dim of at least {_MIN_HEAD_DIM} on a GPU, got {query.shape[-1]}: use "
                "sdpa or eager"
            )
        run = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
        return run(query, key, value, score_mod=score_mod, block_mask=block_mask, scale=scaling)
    return _flex_on_cpu(query, key, value, score_mod, block_mask, scaling)


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    """Compile whole graphs only, since a graph break would fall back to materializing one matrix per head."""
    return compiled(flex_attention, fullgraph=True)


@torch.compiler.disable(reason="flex attention does not compile on a CPU: use sdpa or eager")
def _flex_on_cpu(
    query: Tensor, key: Tensor, value: Tensor, score_mod: ScoreMod | None, block_mask: BlockMask, scaling: float
) -> Tensor:
    """Run the uncompiled reference implementation; compiling it fails for most shapes."""
    if query.requires_grad or key.requires_grad or value.requires_grad:
        raise ValueError(
            "flex attention has no gradients on a CPU: train with sdpa, eager or alibi_banded, or wrap inference in "
            "torch.no_grad()"
        )
    return flex_attention(query, key, value, score_mod=score_mod, block_mask=block_mask, scale=scaling)


def distance_score_mod(slopes: Tensor, offset: int) -> ScoreMod:
    """ALiBi where distances between tokens equal distances between the kernel's own indices.

    Args:
        slopes: ``(H,)``, nats per token.
        offset: Number of keys before the first query, K - Q.
    """
    shift = tokens_before(offset, slopes.device)

    def score_mod(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # Conversions are slow; done before broadcasting, there are few of them.
        return score + slopes[head] * (key.float() - (query + shift).float())

    return score_mod


def slope_score_mod(slopes: Tensor, query_positions: Tensor, key_positions: Tensor) -> ScoreMod:
    """ALiBi from positions. Subtracting positions before multiplying by the slope keeps the distance exact.

    Args:
        slopes: ``(H,)``, nats per token.
        query_positions: ``(B, Q)`` int64, tokens.
        key_positions: ``(B, K)`` int64, tokens.
    """

    def score_mod(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + slopes[head] * (key_positions[row, key] - query_positions[row, query]).float()

    return score_mod


def visible_blocks(context: AttentionContext, device: torch.device) -> BlockMask:
    """Visibility as a block mask, equivalent to the dense mask."""
    if context.segments() is not None:
        return run_blocks(context.q_len, context.kv_len, device, context.first_keys(device))
    make = create_block_mask
    if device.type != "cpu" and not torch.compiler.is_compiling():
        make = _compiled_create_block_mask()
    rows_agree = context.slots.visible is None and context.slots.documents is None
    num_rows = 1 if rows_agree else context.num_rows
    return make(_mask_mod(context, device), num_rows, None, context.q_len, context.kv_len, device)


@functools.cache
def _compiled_create_block_mask() -> Callable[..., BlockMask]:
    """Compiled, because eager mode materializes the query-by-key matrix."""
    return compiled(create_block_mask, fullgraph=False)


def _mask_mod(context: AttentionContext, device: torch.device) -> MaskMod:
    """Mask function: whether a query sees a key, given their indices within the call."""
    queries, keys, visible, documents = (None if tensor is None else tensor.to(device) for tensor in context.slots)
    is_causal = context.is_causal
    is_fully_masked = None
    if visible is not None:
        # A static cache has slots beyond the mask that no query sees yet.
        visible = F.pad(visible.bool(), (0, max(0, keys.shape[0] - visible.shape[-1])))
        counts = visible.cumsum(-1)
        is_fully_masked = (counts[:, queries] if is_causal else counts[:, -1:].expand(-1, queries.shape[0])) == 0
        visible = visible[:, keys]

    def mask_mod(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_seen = keys[key] <= queries[query] if is_causal else key >= 0
        if visible is not None:
            is_seen = (is_seen & visible[row, key]) | (is_fully_masked[row, query] & (keys[key] == queries[query]))
        if documents is not None:
            is_seen = is_seen & (documents[row, query] == documents[row, key])
        return is_seen

    return mask_mod
