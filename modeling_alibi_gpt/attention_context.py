# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Positions and visibility for one forward pass, computed once for all layers. Exported to the Hub.

Shapes: B batch (or 1 if all rows agree), Q queries, K keys, D hidden size.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.masking_utils import create_causal_mask
from transformers.utils import is_tracing

from .attention_inputs import ForwardInputs, attention_dtype, places_in_sequences
from .attention_segments import (
    Segment,
    Slots,
    document_numbers,
    documents_between_padding,
    first_keys_of,
    masked_by_slots,
    segments_of_documents,
    segments_of_visible_runs,
    visible_positions,
)
from .cache_argument import CACHE_NAME


@dataclass(frozen=True, eq=False)
class AttentionContext:
    """Positions and visibility, the same for every layer of a forward pass.

    Attributes:
        query_positions: ``(B, Q)`` int64, tokens.
        key_positions: ``(B, K)`` int64, tokens.
        dtype: Dtype in which attention computes.
        num_rows: Batch size of the call.
        slots: The visibility of ``mask()`` as vectors; None if the caller passed a 4D mask.
        is_causal: Whether it is known in advance that no query sees a key after its own.
        is_aligned: Whether the keys are exactly the slots up to the last query's.
        keeps_windows: Whether earlier keys are in a cache with one window per head.
        is_paged: Whether keys are paged, which only attention functions of transformers support.
        inputs: Inputs from which to build the mask; None builds it from the slots.
    """

    query_positions: Tensor
    key_positions: Tensor
    dtype: torch.dtype
    num_rows: int
    slots: Slots | None
    is_causal: bool
    is_aligned: bool
    keeps_windows: bool = False
    is_paged: bool = False
    inputs: ForwardInputs | None = None
    # Not functools.cached_property, which takes a lock on Python 3.11 that torch.compile cannot trace.
    _made: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_padding(cls, inputs: ForwardInputs) -> "AttentionContext":
        """With a mask ``(B, K)``: positions count the visible tokens, wherever the padding is.

        Explicit positions without a cache divide a row into packed documents, as without padding.
        """
        queries, keys, is_aligned = inputs.slots()
        visible = inputs.attention_mask.to(device=keys.device, dtype=torch.long)
        # A static cache has slots beyond the mask, which no query sees yet.
        visible = F.pad(visible, (0, max(0, keys.shape[0] - visible.shape[-1])))
        documents = None
        if inputs.position_ids is not None and inputs.cache is None:
            documents = documents_between_padding(inputs.position_ids, visible)
        positions = visible_positions(visible, documents)
        slots = Slots(queries, keys, inputs.attention_mask, documents)
        return cls._from(inputs, positions[:, queries], positions[:, keys], slots, is_aligned)

    @classmethod
    def from_documents(cls, inputs: ForwardInputs) -> "AttentionContext":
        """With explicit positions and no cache: packed documents restart at 0 and do not see each other.

        A 4D mask alone decides who sees whom.
        """
        queries, keys, is_aligned = inputs.slots()
        position_ids, slots = inputs.position_ids, None
        if inputs.attention_mask is None:
            documents = document_numbers(position_ids.expand(inputs.inputs_embeds.shape[0], -1))
            slots = Slots(queries, keys, None, documents)
        return cls._from(inputs, position_ids, position_ids, slots, is_aligned)

    @classmethod
    def from_paged(cls, inputs: ForwardInputs, cu_seq_lens_k: Any) -> "AttentionContext":
        """With continuous batching, where the keys of all requests are concatenated.

        Args:
            inputs: Inputs with positions ``(1, Q)`` and a 4D mask.
            cu_seq_lens_k: ``(requests + 1,)``, start of each request's keys; or a dict of it by layer type.
        """
        starts = cu_seq_lens_k["full_attention"] if isinstance(cu_seq_lens_k, dict) else cu_seq_lens_k
        keys = places_in_sequences(starts, inputs.attention_mask.shape[-1], inputs.position_ids.device)
        context = cls._from(inputs, inputs.position_ids, keys[None], None, is_aligned=False)
        return replace(context, is_paged=True)

    @classmethod
    def from_slots(cls, inputs: ForwardInputs) -> "AttentionContext":
        """Without padding: positions are the slots of the cache, or of the call.

        With a 4D mask, new tokens may have positions of their own, such as the branches of a tree of drafts. The first
        one continues the cached text.
        """
        queries, keys, is_aligned = inputs.slots()
        if inputs.attention_mask is None:
            return cls._from(inputs, queries[None], keys[None], Slots(queries, keys, None, None), is_aligned)
        positions = queries[None] if inputs.position_ids is None else inputs.position_ids.long()
        cached = keys + (positions[:, :1] - queries[:1])
        return cls._from(inputs, positions, cached.index_copy(1, queries - keys[0], positions), None, is_aligned)

    @classmethod
    def from_lengths(
        cls, q_len: int, kv_len: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> "AttentionContext":
        """Plain causal attention of the last ``q_len`` of ``kv_len`` tokens, for one row, without a model."""
        keys = torch.arange(kv_len, device=device)
        queries = keys[kv_len - q_len :]
        slots = Slots(queries, keys, None, None)
        return cls(queries[None], keys[None], dtype, num_rows=1, slots=slots, is_causal=True, is_aligned=True)

    @classmethod
    def _from(
        cls, inputs: ForwardInputs, queries: Tensor, keys: Tensor, slots: Slots | None, is_aligned: bool
    ) -> "AttentionContext":
        """A context of these positions."""
        return cls(
            queries,
            keys,
            dtype=attention_dtype(inputs.inputs_embeds),
            num_rows=inputs.inputs_embeds.shape[0],
            slots=slots,
            is_causal=getattr(inputs.config, "is_causal", True) and slots is not None,
            is_aligned=is_aligned,
            keeps_windows=getattr(inputs.cache, "keeps_windows", False),
            inputs=inputs,
        )

    @property
    def q_len(self) -> int:
        return self.query_positions.shape[-1]

    @property
    def kv_len(self) -> int:
        return self.key_positions.shape[-1]

    @property
    def bias_dtype(self) -> torch.dtype:
        """Dtype of biases and slopes: float32, or float64 in a float64 model."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def is_whole(self) -> bool:
        """Whether every row is one text and every query sees all keys up to its own."""
        return self.is_causal and self.is_aligned and self.slots.visible is None and self.slots.documents is None

    def mask(self) -> Tensor | None:
        """Mask ``(B, 1 or H, Q, K)``, built on first use.

        Either bool, True where a query sees a key, or additive, with the dtype's minimum or -inf where it does not.
        None means plain causal attention.
        """
        if "mask" not in self._made:
            self._made["mask"] = self._make_mask()
        return self._made["mask"]

    def segments(self) -> list[Segment] | None:
        """Visibility as segments, or None if segments cannot express it. Queries in no segment are padding."""
        if "segments" not in self._made:
            self._made["segments"] = self._make_segments()
        return self._made["segments"]

    def _make_mask(self) -> Tensor | None:
        if self.inputs is None:
            return (self.slots.queries[:, None] >= self.slots.keys)[None, None]
        # transformers separates documents only in causal masks without padding.
        is_incomplete = self.slots is not None and (
            self.slots.visible is not None or (self.slots.documents is not None and not self.is_causal)
        )
        mask = create_causal_mask(
            config=self.inputs.config,
            inputs_embeds=self.inputs.inputs_embeds,
            attention_mask=self.inputs.attention_mask,
            position_ids=self.inputs.position_ids,
            allow_is_causal_skip=self.inputs.may_skip_mask and not is_incomplete,
            **{CACHE_NAME: self.inputs.cache},
        )
        return masked_by_slots(mask, self.slots) if is_incomplete else mask

    def _make_segments(self) -> list[Segment] | None:
        if self.is_whole:
            return [Segment(slice(0, self.num_rows), slice(0, self.q_len), 0)]
        if not (self.is_causal and self.is_aligned) or is_tracing(self.query_positions):
            return None
        if self.slots.documents is not None:
            return segments_of_documents(self.slots.documents, self.slots.visible)
        return segments_of_visible_runs(self.slots.visible, self.q_len)

    def first_keys(self, device: torch.device | None = None) -> Tensor | None:
        """First key that each query sees, ``(1 or B, Q)`` int64, from segments; None if all see key 0.

        Queries in no segment see their own key. ``device`` is that of the layer; None is that of the positions.
        """
        if self.is_whole:
            return None
        if "first_keys" not in self._made:  # a write per segment, which layers should not repeat
            own_keys = torch.arange(self.kv_len - self.q_len, self.kv_len, device=self.query_positions.device)
            self._made["first_keys"] = first_keys_of(self.segments(), own_keys, self.num_rows)
        return self._made["first_keys"].to(device=device)

    def fully_masked_queries(self) -> Tensor | None:
        """``(B, 1, Q, 1)`` bool, True for queries in no segment; None if all are in one."""
        segments = self.segments()
        num_in_segments = sum(segment.num_queries for segment in segments)
        if num_in_segments == self.num_rows * self.q_len:
            return None
        shape, device = (self.num_rows, 1, self.q_len, 1), self.query_positions.device
        is_fully_masked = torch.ones(shape, dtype=torch.bool, device=device)
        for segment in segments:
            is_fully_masked[segment.rows, :, segment.queries] = False
        return is_fully_masked


def attention_context(inputs: ForwardInputs, kwargs: dict[str, Any]) -> AttentionContext:
    """Determine positions and visibility from the arguments of a forward call.

    With a padding mask, positions count the visible tokens. Otherwise, with an empty cache, they are the caller's
    ``position_ids`` if given. In all other cases they are cache slots, except those of the tokens of this call under a
    4D mask. With an empty cache, ``position_ids`` divide rows into packed documents, with and without padding.

    Args:
        inputs: The arguments as the model received them.
        kwargs: Other keyword arguments of the model, in which continuous batching passes its metadata.
    """
    if isinstance(inputs.cache, PagedAttentionCache):
        return AttentionContext.from_paged(inputs, kwargs["cu_seq_lens_k"])
    inputs = inputs.simplified(kwargs)
    if inputs.attention_mask is not None and inputs.attention_mask.ndim == 2:
        return AttentionContext.from_padding(inputs)
    if inputs.position_ids is not None and inputs.cache is None:
        return AttentionContext.from_documents(inputs)
    return AttentionContext.from_slots(inputs)
