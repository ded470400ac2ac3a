"""Schemas of records about the use of distant text. They follow the rules of ``record_types``."""

from typing import Any, Literal, Self

from pydantic import model_validator

from modeling_alibi_gpt.runtime.record_types import (
    AS_TRAINED,
    Number,
    OfComparison,
    Part,
    PositiveCount,
    RecordType,
    Text,
    require,
    require_length,
)


class Recall(OfComparison):
    """Accuracy of a model's answers at one length and depth, or the ``error`` that prevented them."""

    kind: Literal["recall"]
    name: str
    model: str
    position_method: str
    overrides: dict[str, Any]
    train_context_length: PositiveCount | None
    source: str
    length_tokens: PositiveCount
    depth: Number  # from 0 (start) to 1 (end); null if all answers have the same distance to their source
    num_examples: PositiveCount
    examples_seed: int
    reading: str = AS_TRAINED
    accuracy: Number  # share of examples with an entirely correct answer
    token_accuracy: Number
    nats_per_token: Number
    num_answer_tokens: PositiveCount | None
    distance_tokens: Number  # from the answer back to the requested item
    error: Text

    @model_validator(mode="after")
    def _figures_or_an_error(self) -> Self:
        if self.error is None:
            require(self, "accuracy", "token_accuracy", "nats_per_token", "num_answer_tokens", "distance_tokens")
        return self


class NatsByLastOccurrence(Part):
    """Bin b contains tokens whose last occurrence is at least edge b and less than edge b + 1 tokens back."""

    edges_tokens: list[int]
    nats_per_token: list[Number]
    num_tokens: list[int]
    not_before_nats_per_token: Number  # of tokens that do not occur earlier in the window
    not_before_num_tokens: int


class Context(RecordType):
    """Loss on the last tokens of some windows, given all or part of their context."""

    kind: Literal["context"]
    name: str
    model: str
    position_method: str
    overrides: dict[str, Any]
    train_context_length: PositiveCount | None
    reading: Literal["whole", "replaced", "cut"]
    kept_tokens: PositiveCount | None  # context of the first scored token; null for all of it
    context_tokens: PositiveCount
    scored_tokens: PositiveCount  # of each window
    num_windows: PositiveCount
    nats_per_token: Number
    difference_nats: Number  # relative to the whole context; null for the whole context itself
    nats_per_token_by_block: list[float] | None
    nats_by_last_occurrence: NatsByLastOccurrence | None
    error: Text

    @model_validator(mode="after")
    def _figures_or_an_error(self) -> Self:
        if self.error is None:
            of_part = () if self.reading == "whole" else ("difference_nats", "kept_tokens")
            require(self, "nats_per_token", "nats_per_token_by_block", "nats_by_last_occurrence", *of_part)
        if (located := self.nats_by_last_occurrence) is not None:
            for field in ("nats_per_token", "num_tokens"):
                name = f"nats_by_last_occurrence.{field}"
                require_length(name, getattr(located, field), len(located.edges_tokens) - 1)
        return self
