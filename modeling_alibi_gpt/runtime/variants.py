"""Classifies how the variants of a comparison differ from the paper's ALiBi."""

from collections.abc import Mapping
from typing import Any, Literal


# Defaults of the fields that a beta sweep sets; a variant with these values is the paper's ALiBi.
BETA_DEFAULTS: dict[str, Any] = {"alibi_beta": 1.0, "alibi_slope_kind": "geometric", "alibi_trainable": "none"}
BETA_SCHEDULE = "alibi_beta_schedule"
POSITION_RATE = "position_learning_rate"
TRAINING_PREFIX = "training."


def is_setting(key: str) -> bool:
    """Whether a key of a variant is an experiment setting rather than a model field."""
    return key in (POSITION_RATE, BETA_SCHEDULE) or key.startswith(TRAINING_PREFIX)


def what_varies(position_method: str, fields: Mapping[str, Any]) -> Literal["nothing", "beta", "method"]:
    """Classify how a variant differs from the paper's ALiBi: not at all, only in beta sweep fields, or in more.

    Training settings do not count, because each variant may use those that suit it best. A beta schedule counts.
    """
    set_fields = {
        field: value
        for field, value in fields.items()
        if (field == BETA_SCHEDULE and value is not None) or not (field == "position_method" or is_setting(field))
    }
    if position_method != "alibi" or not set_fields.keys() <= BETA_DEFAULTS.keys():
        return "method"
    return "nothing" if set_fields.items() <= BETA_DEFAULTS.items() else "beta"


def corpus_of(comparison: str) -> str:
    """Corpus of an old comparison, whose records give it only in the name ``what on corpus``."""
    return comparison.split(" on ")[-1]
