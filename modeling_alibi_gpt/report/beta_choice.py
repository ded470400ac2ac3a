"""Describe in words which beta a sweep chooses, and why."""

from collections.abc import Sequence

from modeling_alibi_gpt.report.page import render_lines
from modeling_alibi_gpt.report.statistics import choose_trial
from modeling_alibi_gpt.runtime.records import Record


def describe_choice(trials: Sequence[Record]) -> str:
    """Describe the beta of the lowest loss, the betas not distinguishable from it, the rule, and the chosen beta.

    Args:
        trials: ``beta_trial`` records of one study, of which at least one is complete.
    """
    chosen = choose_trial(trials)
    assert chosen is not None
    taken, choice = chosen
    lowest = next(other for other in trials if other["beta"] == choice.lowest and other["state"] == "COMPLETE")
    has_blocks = taken.get("nats_per_token_by_block") is not None
    complete = {other["beta"] for other in trials if other["state"] == "COMPLETE"}
    values = {"taken": taken, "lowest": lowest, "level": choice.level, "is_lone": len(complete) == 1}
    values["has_blocks"] = has_blocks
    return " ".join(render_lines("sections.j2", "choice", **values))
