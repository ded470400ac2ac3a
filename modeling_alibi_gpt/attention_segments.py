# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Two compact representations of visibility: segments of consecutive tokens, and slots. Exported to the Hub.

Shapes: B batch, Q queries, K keys.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


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


def segments_of_documents(documents: Tensor) -> list[Segment]:
    """One segment per document and row."""
    segments = []
    for row in documents:
        edges = itertools.accumulate(row.bincount().tolist(), initial=0)
        segments.append([Segment(slice(0, 0), slice(*edge), edge[0]) for edge in itertools.pairwise(edges)])
    return list(_join_equal_rows(segments))


def _join_equal_rows(segments_by_row: list[list[Segment]]) -> Iterator[Segment]:
    """The segments of all rows; adjacent rows with equal segments share them."""
    row = 0
    for segments, equal_rows in itertools.groupby(segments_by_row):
        stop = row + len(list(equal_rows))
        for segment in segments:
            yield segment._replace(rows=slice(row, stop))
        row = stop
