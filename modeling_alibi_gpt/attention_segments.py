# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Two compact representations of visibility, segments of consecutive tokens and slots, and what masks owe them.

Exported to the Hub.

Shapes: B batch, Q queries, K keys.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import is_tracing


class Segment(NamedTuple):
    """Consecutive tokens at consecutive positions that see only each other.

    Attributes:
        rows: Rows of the batch.
        queries: Queries, indexed within the call.
        first_key: The first key that they see. Query q of the call sees keys up to ``K - Q + q``.
    """

    rows: slice
    queries: slice
    first_key: int

    @property
    def num_queries(self) -> int:
        """Number of queries, summed over the rows."""
        return (self.rows.stop - self.rows.start) * (self.queries.stop - self.queries.start)


class Slots(NamedTuple):
    """Visibility as a few vectors. A causal query sees no slot after its own.

    Attributes:
        queries: ``(Q,)`` int64, slots in the cache, or in the call.
        keys: ``(K,)`` int64, slots likewise.
        visible: ``(B, slots)``, 0 or False for padding; None without padding.
        documents: ``(B, Q)`` int64, document indices within the row; tokens see only their own. None if not packed.
    """

    queries: Tensor
    keys: Tensor
    visible: Tensor | None
    documents: Tensor | None


def document_numbers(position_ids: Tensor) -> Tensor:
    """Document index of each token, ``(B, Q)`` int64. A document ends where the next position is not one higher."""
    return F.pad(torch.diff(position_ids, dim=-1) != 1, (1, 0)).cumsum(-1)


def documents_between_padding(position_ids: Tensor, visible: Tensor) -> Tensor | None:
    """Document index of each token of padded rows, ``(B, K)`` int64; padding belongs to the document before it.

    None if every row is one document, as in generation, which passes positions with its padding masks.

    A document ends where the position of the next visible token is higher neither by one nor by the number of slots
    that it is further on, because positions may count the padding in between or not.

    Args:
        position_ids: ``(1 or B, K)``, of which those of padding mean nothing.
        visible: ``(B, K)`` int64, 0 for padding.
    """
    num_keys = visible.shape[-1]
    ranks = visible.cumsum(-1) - 1
    places = torch.where(visible.bool(), ranks, num_keys)

    def step(values: Tensor) -> Tensor:
        """Increase of a value since the visible token before."""
        values = values.expand(visible.shape)
        compact = values.new_zeros(visible.shape[0], num_keys + 1).scatter(-1, places, values)
        return values - compact.gather(-1, (ranks - 1).clamp(min=0))

    steps, gaps = step(position_ids), step(torch.arange(num_keys, device=visible.device))
    documents = (visible.bool() & (ranks > 0) & (steps != 1) & (steps != gaps)).cumsum(-1)
    return documents if is_tracing(documents) or bool(documents.any()) else None


def visible_positions(visible: Tensor, documents: Tensor | None) -> Tensor:
    """Positions ``(B, K)`` that count the visible tokens of a row, or of each of its documents."""
    counts = (visible.cumsum(-1) - 1).clamp(min=0)
    if documents is None:
        return counts
    num_keys = visible.shape[-1]
    is_first = F.pad(torch.diff(documents, dim=-1), (1, 0)).bool()
    places = torch.where(is_first, documents, num_keys)
    first_counts = counts.new_zeros(visible.shape[0], num_keys + 1).scatter(-1, places, counts)
    return counts - first_counts.gather(-1, documents)


def segments_of_visible_runs(attention_mask: Tensor, q_len: int) -> list[Segment] | None:
    """One segment per row, from its first to its last visible token; None if a row has padding in between."""
    visible = attention_mask.bool()
    first = visible.int().argmax(-1)
    num_keys = visible.shape[-1]
    last = num_keys - visible.flip(-1).int().argmax(-1)
    counts = visible.sum(-1)
    if not bool(((last - first == counts) | (counts == 0)).all()):
        return None
    offset = num_keys - q_len
    runs = []
    for start, stop, count in zip(first.tolist(), last.tolist(), counts.tolist(), strict=True):
        queries = slice(max(0, start - offset), stop - offset)
        runs.append([Segment(slice(0, 0), queries, start)] if count and queries.start < queries.stop else [])
    return list(_join_equal_rows(runs))


def segments_of_documents(documents: Tensor, visible: Tensor | None = None) -> list[Segment] | None:
    """One segment per document and row; None if a document has padding in between."""
    padding = -1
    segments = []
    for row in documents if visible is None else torch.where(visible.bool(), documents, padding):
        numbers, counts = (each.tolist() for each in row.unique_consecutive(return_counts=True))
        edges = itertools.pairwise(itertools.accumulate(counts, initial=0))
        runs = [(number, edge) for number, edge in zip(numbers, edges, strict=True) if number != padding]
        if len({number for number, _ in runs}) < len(runs):
            return None
        segments.append([Segment(slice(0, 0), slice(*edge), edge[0]) for _, edge in runs])
    return list(_join_equal_rows(segments))


def first_keys_of(segments: list[Segment], own_keys: Tensor, num_rows: int) -> Tensor:
    """First key that each query sees, ``(1 or B, Q)`` int64; queries in no segment see their own, ``own_keys``."""
    rows_agree = all(segment.rows == slice(0, num_rows) for segment in segments)
    first_keys = own_keys.repeat(1 if rows_agree else num_rows, 1)
    for segment in segments:
        first_keys[segment.rows, segment.queries] = segment.first_key
    return first_keys


def masked_by_slots(mask: Tensor, slots: Slots) -> Tensor:
    """A causal padding mask ``(B, 1, Q, K)``, bool or additive, without keys of other documents.

    Padding queries, which see no key, see their own: an empty softmax yields NaN or wrong gradients.
    """
    is_bool = mask.dtype == torch.bool
    lowest = False if is_bool else torch.finfo(mask.dtype).min
    if slots.documents is not None:
        mask = mask.masked_fill((slots.documents[:, :, None] != slots.documents[:, None, :])[:, None], lowest)
    is_own = slots.queries[:, None] == slots.keys[None, :]
    is_fully_masked = (mask <= lowest).all(-1, keepdim=True)
    return mask.masked_fill(is_own & is_fully_masked, True if is_bool else 0.0)


def _join_equal_rows(segments_by_row: list[list[Segment]]) -> Iterator[Segment]:
    """The segments of all rows; adjacent rows with equal segments share them."""
    row = 0
    for segments, equal_rows in itertools.groupby(segments_by_row):
        stop = row + len(list(equal_rows))
        for segment in segments:
            yield segment._replace(rows=slice(row, stop))
        row = stop
