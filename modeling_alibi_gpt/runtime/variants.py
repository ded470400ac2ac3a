"""The differences between the variants of a comparison: stored in its records, and derived for older records."""

from collections.abc import Mapping
from typing import Any, Literal


# The fields of a sweep of beta at their defaults: a variant that leaves them there is the paper's ALiBi.
BETA_DEFAULTS: dict[str, Any] = {"alibi_beta": 1.0, "alibi_slope_kind": "geometric", "alibi_trainable": "none"}
BETA_SCHEDULE = "alibi_beta_schedule"
POSITION_RATE = "position_learning_rate"
TRAINING_PREFIX = "training."


def is_setting(key: str) -> bool:
    """Whether a key of a variant is its experiment's, and no field of its model."""
    return key in (POSITION_RATE, BETA_SCHEDULE) or key.startswith(TRAINING_PREFIX)


def what_varies(position_method: str, fields: Mapping[str, Any]) -> Literal["nothing", "beta", "method"]:
    """In what a variant differs from the paper's ALiBi: in nothing, only in what a sweep of beta sets, or in more.

    Settings of its training do not count, for each variant may have those that are best for it; a schedule of beta
    does.
    """
    set_fields = {
        field: value
        for field, value in fields.items()
        if field == BETA_SCHEDULE or not (field == "position_method" or is_setting(field))
    }
    if position_method != "alibi" or not set_fields.keys() <= BETA_DEFAULTS.keys():
        return "method"
    return "nothing" if set_fields.items() <= BETA_DEFAULTS.items() else "beta"


def corpus_of(comparison: str) -> str:
    """The text of a comparison of old, whose records name it only as ``what on corpus``."""
    return comparison.split(" on ")[-1]
