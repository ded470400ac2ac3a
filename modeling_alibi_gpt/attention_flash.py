# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""FlashAttention 2 with ALiBi through its ``alibi_slopes`` argument. Exported to the Hub.

Its kernels add ``-slope * |i + K - Q - j|`` to the score of query i and key j and align the causal mask to the last
key, which is ALiBi for the last Q of K tokens. They compute no gradient of the slopes.

Shapes: B batch, H heads, H_kv key/value heads, Q queries, K keys, d head size, N sequences.
"""

import importlib
import os
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_context import AttentionContext
from .attention_segments import Segment
from .attention_tiles import attend_to_self


# The dtypes that its kernels support.
DTYPES = (torch.float16, torch.bfloat16)


class FlashAttention:
    """Causal attention through ``flash_attn``, with ALiBi or without a bias.

    Args:
        context: Visibility.
        slopes: ``(1 or B, 1, H)``, nats per token; None for no bias.

    Raises:
        ValueError: The dtype is neither float16 nor bfloat16, the slopes are trained or differ by query, the
            visibility cannot be expressed as sequences, or ``flash_attn`` cannot be imported.
    """

    def __init__(self, context: AttentionContext, slopes: Tensor | None = None) -> None:
        _check(context, slopes)
        self.functions = _flash_attn()
        self.slopes = None if slopes is None else slopes.expand(context.num_rows, 1, -1)[:, 0].float()
        self.context = context
        self.sequences = None
        if not context.is_whole and context.is_aligned:
            self.sequences = Sequences.from_segments(context)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Return ``(B, H, Q, d)`` for queries ``(B, H, Q, d)`` and for keys and values ``(B, H_kv, K, d)``.

        Raises:
            ValueError: A gradient or dropout is required with a static cache.
        """
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        options = {"softmax_scale": scaling, "causal": True}
        training_options = {"dropout_p": dropout, "deterministic": _is_deterministic()}
        slopes = None if self.slopes is None else self.slopes.to(query.device)
        if self.sequences is not None:
            output = self._attend_sequences(query, key, value, slopes, **training_options, **options)
        elif self.context.is_aligned:
            output = self.functions.flash_attn_func(
                query, key, value, alibi_slopes=slopes, **training_options, **options
            )
        else:
            _check_inference(query, key, value, dropout)
            # The slots of a static cache after the last query's are empty.
            num_keys = (self.context.slots.queries[-1:] + 1).to(query.device, torch.int32).expand(query.shape[0])
            output = self.functions.flash_attn_with_kvcache(
                query, key, value, cache_seqlens=num_keys.contiguous(), alibi_slopes=slopes, **options
            )
        return output.transpose(1, 2)

    def _attend_sequences(
        self, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None, **options: Any
    ) -> Tensor:
        sequences = self.sequences.to(query.device)
        flat = query.flatten(0, 1)
        packed = self.functions.flash_attn_varlen_func(
            flat[sequences.queries],
            key.flatten(0, 1)[sequences.keys],
            value.flatten(0, 1)[sequences.keys],
            cu_seqlens_q=sequences.cu_seqlens_q,
            cu_seqlens_k=sequences.cu_seqlens_k,
            max_seqlen_q=sequences.max_seqlen_q,
            max_seqlen_k=sequences.max_seqlen_k,
            alibi_slopes=None if slopes is None else slopes[sequences.rows],
            **options,
        )
        output = torch.zeros_like(flat).index_copy(0, sequences.queries, packed).view_as(query)
        own = value.repeat_interleave(query.shape[2] // value.shape[2], dim=2).transpose(1, 2)
        return attend_to_self(output.transpose(1, 2), own, self.context.fully_masked_queries()).transpose(1, 2)


class Sequences(NamedTuple):
    """Segments concatenated in the layout of ``flash_attn_varlen_func``.

    Attributes:
        queries: ``(total queries,)`` int64, indices into the flattened queries ``(B * Q,)``.
        keys: ``(total keys,)`` int64, indices into the flattened keys ``(B * K,)``.
        cu_seqlens_q: ``(N + 1,)`` int32, start of each sequence's queries.
        cu_seqlens_k: ``(N + 1,)`` int32, start of each sequence's keys.
        max_seqlen_q: Number of queries of the longest sequence.
        max_seqlen_k: Number of keys of the longest sequence.
        rows: ``(N,)`` int64, batch row of each sequence.
    """

    queries: Tensor
    keys: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    rows: Tensor

    def to(self, device: torch.device) -> "Sequences":
        return Sequences(*(part.to(device) if isinstance(part, Tensor) else part for part in self))

    @classmethod
    def from_segments(cls, context: AttentionContext) -> "Sequences":
        q_len, kv_len, device = context.q_len, context.kv_len, context.query_positions.device
        parts = [(row, segment) for segment in context.segments() for row in range(*segment.rows.indices(2**31))]
        queries = [torch.arange(s.queries.start, s.queries.stop) + row * q_len for row, s in parts]
        keys = [torch.arange(s.first_key, _last_key(s, context)) + row * kv_len for row, s in parts]
        num_queries, num_keys = (torch.tensor([len(part) for part in places]) for places in (queries, keys))
        none = torch.zeros(0, dtype=torch.int64)
        return cls(
            queries=torch.cat([none, *queries]).to(device),
            keys=torch.cat([none, *keys]).to(device),
            cu_seqlens_q=F.pad(num_queries.cumsum(0), (1, 0)).to(device, torch.int32),
            cu_seqlens_k=F.pad(num_keys.cumsum(0), (1, 0)).to(device, torch.int32),
            max_seqlen_q=int(num_queries.amax()) if parts else 0,
            max_seqlen_k=int(num_keys.amax()) if parts else 0,
            rows=torch.tensor([row for row, _ in parts], dtype=torch.int64, device=device),
        )


def _last_key(segment: Segment, context: AttentionContext) -> int:
    return segment.queries.stop + context.kv_len - context.q_len


def _check(context: AttentionContext, slopes: Tensor | None) -> None:
    if context.dtype not in DTYPES:
        raise ValueError(
            f"attention back end 'flash_attention_2' supports float16 and bfloat16, got {context.dtype}: load the "
            "model with dtype=torch.bfloat16, or use sdpa"
        )
    if slopes is not None and slopes.requires_grad:
        raise ValueError(
            "attention back end 'flash_attention_2' computes no gradient of the slopes, which alibi_trainable "
            "requires: train with flex_attention or sdpa"
        )
    if slopes is not None and slopes.shape[1] != 1:
        raise ValueError(
            "attention back end 'flash_attention_2' supports one slope per head and row, but this alibi_scaling "
            "varies slopes by query: use flex_attention or sdpa"
        )
    has_empty_slots = context.is_causal and not context.is_aligned
    if has_empty_slots and context.slots.visible is None and context.slots.documents is None:
        return
    if has_empty_slots or context.segments() is None:
        raise ValueError(
            "attention back end 'flash_attention_2' needs contiguous tokens: use sdpa or eager for padding between "
            "visible tokens, padding with a static cache, 4D masks and compiled padding or packing"
        )


def _check_inference(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> None:
    """``flash_attn_with_kvcache`` has no backward, without which gradients would be silently incomplete."""
    has_gradients = torch.is_grad_enabled() and any(states.requires_grad for states in (query, key, value))
    if has_gradients or dropout > 0.0:
        raise ValueError(
            "attention back end 'flash_attention_2' has no gradients and no dropout with a static cache, got "
            f"attention_dropout={dropout} with gradients {'on' if has_gradients else 'off'}: use a DynamicCache or "
            "sdpa, or torch.no_grad() and model.eval()"
        )


def _is_deterministic() -> bool:
    """Whether torch or transformers' ``full_determinism`` wants deterministic gradients; the latter sets both.

    In a compiled model, the variable counts as it was when the graph was traced.
    """
    return torch.are_deterministic_algorithms_enabled() or os.getenv("FLASH_ATTENTION_DETERMINISTIC", "0") == "1"


def _flash_attn() -> ModuleType:
    try:
        return importlib.import_module("flash_attn")
    except ImportError as error:
        raise ValueError(f"attention back end 'flash_attention_2' needs the package flash-attn: {error}") from error
