"""Schemas of bias records: matrices for one length, and curves over distance."""

from typing import Literal, Self

from pydantic import model_validator

from modeling_alibi_gpt.runtime.record_types import (
    ByHead,
    Number,
    OfComparison,
    PositiveCount,
    RecordType,
    require_length,
)


class BiasMatrix(RecordType):
    kind: Literal["bias_matrix"]
    name: str
    slopes: list[float]
    bias: list[list[list[Number]]]

    @model_validator(mode="after")
    def _a_square_for_each_slope(self) -> Self:
        require_length("slopes", self.slopes, len(self.slopes))
        require_length("bias", self.bias, len(self.slopes))
        for rows in self.bias:
            for row in rows or [[]]:
                require_length("bias", row, len(rows))
        return self


class BiasByDistance(OfComparison):
    kind: Literal["bias_by_distance"]
    name: str
    position_method: str
    train_context_length: PositiveCount
    distances_tokens: list[int]
    bias_before: ByHead
    bias_after: ByHead

    @model_validator(mode="after")
    def _a_number_for_each_distance(self) -> Self:
        require_length("distances_tokens", self.distances_tokens, len(self.distances_tokens))
        for field in ("bias_before", "bias_after"):
            layers = getattr(self, field)
            require_length(field, layers, len(self.bias_before))
            for heads in layers:
                require_length(field, heads, len(layers[0]))
                for curve in heads:
                    require_length(field, curve, len(self.distances_tokens))
        return self
