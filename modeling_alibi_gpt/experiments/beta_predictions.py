"""Predictions of the next budget of a comparison from smaller budgets, recorded before it is evaluated."""

from collections.abc import Sequence
from pathlib import Path

from modeling_alibi_gpt.report.beta_budgets import predict_budget
from modeling_alibi_gpt.runtime.records import Record, append_record, read_records


PREDICTIONS_FILE = "predictions.jsonl"


def known_predictions(output_dir: Path, records: Sequence[Record], budget_tokens: int | None) -> list[Record]:
    """The ``prediction`` records of a comparison, after adding one for the next budget if it has none yet.

    Args:
        output_dir: Folder of the comparison.
        records: Records of the budgets that have been evaluated.
        budget_tokens: The next budget in tokens; None if all have been evaluated.
    """
    path = output_dir / PREDICTIONS_FILE
    known = read_records(path) if path.exists() else []
    if budget_tokens is None or any(record["budget_tokens"] == budget_tokens for record in known):
        return known
    prediction = predict_budget(records, budget_tokens)
    if prediction is None:
        return known
    append_record(path, prediction)
    return [*known, prediction]
