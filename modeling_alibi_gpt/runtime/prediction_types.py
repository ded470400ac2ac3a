"""Schema of prediction records."""

from typing import Annotated, Literal

from pydantic import Field

from modeling_alibi_gpt.runtime.record_types import PositiveCount, PositiveNumber, RecordType


Ends = Annotated[list[PositiveNumber], Field(min_length=2, max_length=2)]


class Prediction(RecordType):
    """Prediction for an unread budget from the smaller budgets of a series of comparisons."""

    kind: Literal["prediction"]
    comparison: str  # the series
    budget_tokens: PositiveCount
    from_budgets_tokens: list[int]
    beta: PositiveNumber
    beta_ends: Ends  # of its interval
    worth_nats: PositiveNumber  # of the best beta against 1
    worth_ends_nats: Ends
