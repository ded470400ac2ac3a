"""Schemas of records about the use of distant text; their rules are those of ``record_types``."""

from typing import Any, Literal, Self

from pydantic import model_validator

from modeling_alibi_gpt.runtime.record_types import (
    AS_TRAINED,
    Number,
    OfComparison,
    Part,
    Positive,
    RecordType,
    Text,
    require,
    require_length,
)


class Recall(OfComparison):
    """Answers of a model at one length and depth: ``error`` says why there are none."""

    kind: Literal["recall"]
    name: str
    model: str
    position_method: str
    overrides: dict[str, Any]
    train_context_length: Positive | None
    source: str
    length_tokens: Positive
    depth: Number  # from 0, the start, to 1, the end; null where every answer is as far from its original
    num_examples: Positive
    examples_seed: int
    reading: str = AS_TRAINED
    accuracy: Number  # share of the examples whose whole answer is right
    token_accuracy: Number
    nats_per_token: Number
    num_answer_tokens: Positive | None
    distance_tokens: Number  # from the answer back to what is asked for
    error: Text

    @model_validator(mode="after")
    def _figures_or_an_error(self) -> Self:
        if self.error is None:
            require(self, "accuracy", "token_accuracy", "nats_per_token", "num_answer_tokens", "distance_tokens")
        return self


class NatsByLastOccurrence(Part):
    """Bin b holds the tokens whose last occurrence is from edge b to before edge b + 1 tokens back."""

    edges_tokens: list[int]
    nats_per_token: list[Number]
    num_tokens: list[int]
    not_before_nats_per_token: Number  # of tokens that do not occur earlier in the window
    not_before_num_tokens: int


class Context(RecordType):
    """The last tokens of some windows, read with their whole context or with a part of it."""

    kind: Literal["context"]
    name: str
    model: str
    position_method: str
    overrides: dict[str, Any]
    train_context_length: Positive | None
    reading: Literal["whole", "replaced", "cut"]
    kept_tokens: Positive | None  # of the context of the first scored token; null for the whole
    context_tokens: Positive
    scored_tokens: Positive  # of each window
    num_windows: Positive
    nats_per_token: Number
    difference_nats: Number  # above the whole context; null for it
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
