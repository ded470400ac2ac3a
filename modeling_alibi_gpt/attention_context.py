# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Positions and visibility for one forward pass, found once for all layers. Travels to the Hub.

Shapes: B batch (or 1, where all rows agree), Q queries, K keys.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.utils import is_tracing

from .attention_segments import Segment, Slots, document_numbers, segments_of_documents, segments_of_visible_runs


class AttentionContext:
    """Positions and visibility, the same for every layer of a forward pass.

    Attributes:
        query_positions: ``(B, Q)`` int64, tokens.
        key_positions: ``(B, K)`` int64, tokens.
        dtype: What attention computes in.
        num_rows: B of the call.
        is_causal: Whether no query sees a key after its own, as far as can be told beforehand.
        slots: The same as ``mask()`` says, unless the caller gave a mask of four dimensions.
        keeps_windows: Whether keys before this call are in a cache that keeps a window a head.
        is_whole: Whether every row is one text and every query sees all keys up to its own.
    """

    def __init__(
        self,
        query_positions: Tensor,
        key_positions: Tensor,
        dtype: torch.dtype,
        num_rows: int,
        make_mask: Callable[[], Tensor | None],
        make_segments: Callable[[], list[Segment] | None],
        is_causal: bool,
        is_whole: bool,
        slots: Slots | None = None,
        keeps_windows: bool = False,
    ) -> None:
        self.query_positions = query_positions
        self.key_positions = key_positions
        self.dtype = dtype
        self.num_rows = num_rows
        self.is_causal = is_causal
        self.is_whole = is_whole
        self.slots = slots
        self.keeps_windows = keeps_windows
        self._make_mask = make_mask
        self._make_segments = make_segments
        self._mask: tuple[Tensor | None] | None = None
        self._segments: tuple[list[Segment] | None] | None = None

    @property
    def q_len(self) -> int:
        return self.query_positions.shape[-1]

    @property
    def kv_len(self) -> int:
        return self.key_positions.shape[-1]

    @property
    def bias_dtype(self) -> torch.dtype:
        """What biases and slopes are computed in: float32, or float64 in a float64 model."""
        return torch.promote_types(self.dtype, torch.float32)

    def mask(self) -> Tensor | None:
        """``(B, 1 or H, Q, K)``, made when it is first asked for.

        Bool, True where a query sees a key, or additive, the dtype's minimum or -inf where it does not; None
        means plain causal attention.
        """
        if self._mask is None:
            self._mask = (self._make_mask(),)
        return self._mask[0]

    def segments(self) -> list[Segment] | None:
        """Visibility as segments; None where it cannot be expressed so. Queries in no segment are padding."""
        if self._segments is None:
            self._segments = (self._make_segments(),)
        return self._segments[0]

    def first_keys(self) -> Tensor | None:
        """``(1 or B, Q)`` int64: the first key that a query sees, from segments; None where that is the first of all.

        Queries in no segment see their own key.
        """
        segments = self.segments()
        if self.is_whole:
            return None
        own_keys = torch.arange(self.kv_len - self.q_len, self.kv_len, device=self.query_positions.device)
        rows_agree = all(segment.rows == slice(0, self.num_rows) for segment in segments)
        first_keys = own_keys.repeat(1 if rows_agree else self.num_rows, 1)
        for segment in segments:
            first_keys[segment.rows, segment.queries] = segment.first_key
        return first_keys

    def fully_masked_queries(self) -> Tensor | None:
        """``(B, 1, Q, 1)`` bool, True for queries in no segment; None if all are in one."""
        segments = self.segments()
        num_in_segments = sum(_length(segment.rows) * _length(segment.queries) for segment in segments)
        if num_in_segments == self.num_rows * self.q_len:
            return None
        is_fully_masked = torch.ones(
            self.num_rows, 1, self.q_len, 1, dtype=torch.bool, device=self.query_positions.device
        )
        for segment in segments:
            is_fully_masked[segment.rows, :, segment.queries] = False
        return is_fully_masked


def _length(run: slice) -> int:
    return run.stop - run.start


def attention_context(
    config: PreTrainedConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    past_key_values: Cache | None,
    may_skip_mask: bool,
    kwargs: dict[str, Any],
) -> AttentionContext:
    """Positions and visibility from what the model was called with.

    Positions count the visible tokens where there is a padding mask, are the caller's where nothing is cached (packed
    documents restart at 0), and else are cache slots.

    Args:
        config: Of the model.
        inputs_embeds: ``(B, Q, D)``.
        attention_mask: ``(B, K)``, 1 where a token is visible; or ``(B, 1 or H, Q, K)``; or None.
        position_ids: ``(B, Q)`` or None.
        past_key_values: The cache before this call, or None.
        may_skip_mask: Whether plain causal attention may go without a mask.
        kwargs: What else the model was called with; continuous batching speaks there.
    """
    num_rows, q_len = inputs_embeds.shape[:2]
    if _masks_nothing(attention_mask):
        attention_mask = None
    if _is_empty(past_key_values, q_len):
        past_key_values = None

    query_slots, key_slots, is_aligned = _slots(q_len, attention_mask, past_key_values, inputs_embeds.device)
    is_padded = attention_mask is not None and attention_mask.ndim == 2
    has_own_mask = attention_mask is not None and not is_padded
    is_causal = getattr(config, "is_causal", True) and not has_own_mask
    has_ids = position_ids is not None and attention_mask is None and past_key_values is None
    documents = document_numbers(position_ids.expand(num_rows, -1)) if has_ids else None
    is_whole = is_causal and is_aligned and attention_mask is None and not has_ids

    # Neither says what it returns: in a compiled model, torch 2.8 cannot make a union of types.
    def make_mask():
        mask = create_causal_mask(
            config=config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            allow_is_causal_skip=may_skip_mask,
        )
        return _let_fully_masked_queries_attend_to_self(mask, query_slots, key_slots) if is_padded else mask

    def make_segments():
        if is_whole:
            return [Segment(slice(0, num_rows), slice(0, q_len), 0)]
        if not (is_causal and is_aligned) or is_tracing(inputs_embeds):
            return None
        return segments_of_visible_runs(attention_mask, q_len) if is_padded else segments_of_documents(documents)

    if is_padded:
        positions = _visible_positions(attention_mask, query_slots, key_slots)
    elif "cu_seq_lens_k" in kwargs and "cache" in kwargs:
        positions = _paged_positions(kwargs["cu_seq_lens_k"], position_ids, attention_mask)
    elif position_ids is not None and past_key_values is None:
        positions = position_ids, position_ids
    else:
        positions = query_slots[None], key_slots[None]
    return AttentionContext(
        *positions,
        dtype=_attention_dtype(inputs_embeds),
        num_rows=num_rows,
        make_mask=make_mask,
        make_segments=make_segments,
        is_causal=is_causal,
        is_whole=is_whole,
        slots=None if has_own_mask else Slots(query_slots, key_slots, attention_mask, documents),
        keeps_windows=getattr(past_key_values, "keeps_windows", False),
    )


def _masks_nothing(attention_mask: Tensor | None) -> bool:
    """Whether a padding mask is all ones; transformers looks for packed documents only where there is no mask."""
    if attention_mask is None or attention_mask.ndim != 2 or is_tracing(attention_mask):
        return False
    return bool(attention_mask.all())


def _is_empty(past_key_values: Cache | None, q_len: int) -> bool:
    """Whether a growing cache holds nothing yet; transformers looks for packed documents only without a cache."""
    if past_key_values is None or past_key_values.is_compileable:
        return False
    return past_key_values.get_mask_sizes(q_len, 0) == (q_len, 0)


def _slots(
    q_len: int, attention_mask: Tensor | None, past_key_values: Cache | None, device: torch.device
) -> tuple[Tensor, Tensor, bool]:
    """Slots ``(Q,)`` and ``(K,)`` in the cache, and whether the keys are all slots up to the last query's."""
    q_offset, kv_offset = 0, 0
    kv_len = q_len if attention_mask is None else attention_mask.shape[-1]
    if past_key_values is not None:
        q_offset = past_key_values.get_query_offset()
        kv_len, kv_offset = past_key_values.get_mask_sizes(q_len, 0)
    # A static cache counts in a tensor that it changes in place; adding makes a new one.
    query_slots = torch.arange(q_len, device=device) + q_offset
    key_slots = torch.arange(kv_len, device=device) + kv_offset
    # A cache of fixed size, or one that dropped its first tokens, keeps its keys elsewhere than at the end.
    is_aligned = isinstance(q_offset, int) and (kv_offset, kv_len) == (0, q_offset + q_len)
    return query_slots, key_slots, is_aligned


def _visible_positions(attention_mask: Tensor, query_slots: Tensor, key_slots: Tensor) -> tuple[Tensor, Tensor]:
    """Positions ``(B, Q)`` and ``(B, K)`` that count the visible tokens of a row, wherever its padding is."""
    visible = attention_mask.to(device=key_slots.device, dtype=torch.long)
    # A static cache has slots beyond the mask, which no query sees yet.
    visible = F.pad(visible, (0, max(0, key_slots.shape[0] - visible.shape[-1])))
    positions = (visible.cumsum(-1) - 1).clamp(min=0)
    return positions[:, query_slots], positions[:, key_slots]


def _let_fully_masked_queries_attend_to_self(
    mask: Tensor | None, query_slots: Tensor, key_slots: Tensor
) -> Tensor | None:
    """Give padding queries, which see no key, their own: a softmax over nothing has wrong gradients or NaN."""
    if not isinstance(mask, Tensor):
        return mask
    is_own = query_slots[:, None] == key_slots[None, :]
    if mask.dtype == torch.bool:
        return mask | (is_own & ~mask.any(-1, keepdim=True))
    is_fully_masked = (mask <= torch.finfo(mask.dtype).min).all(-1, keepdim=True)
    return mask.masked_fill(is_own & is_fully_masked, 0.0)


def _paged_positions(cu_seq_lens_k: Any, position_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Positions under continuous batching, where the keys of all requests are concatenated."""
    starts = cu_seq_lens_k["full_attention"] if isinstance(cu_seq_lens_k, dict) else cu_seq_lens_k
    key_slots = torch.arange(attention_mask.shape[-1], device=position_ids.device)
    request = torch.searchsorted(starts[1:].to(key_slots), key_slots, right=True).clamp(max=starts.shape[0] - 2)
    return position_ids, (key_slots - starts[request])[None]


def _attention_dtype(inputs_embeds: Tensor) -> torch.dtype:
    """What attention computes in: autocast's dtype where it is on, so that no layer casts the mask again."""
    device_type = inputs_embeds.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return inputs_embeds.dtype
