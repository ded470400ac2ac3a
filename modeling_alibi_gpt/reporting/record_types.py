"""What type each field of a record has, whatever the kind of the record; fields that no report reads have none."""

import math
import types
import typing
from collections.abc import Iterator
from typing import Any, TypedDict


class LossPoint(TypedDict):
    """The mean loss since the point before it."""

    step: int
    nats_per_token: float


class NatsByPosition(TypedDict):
    """Mean loss in bins of position, whose edges are one more than their figures."""

    edges_tokens: list[int]
    nats_per_token: list[float]
    num_tokens: list[int]


class Hardware(TypedDict, total=False):
    cpu: str | None
    num_cores: int | None
    memory_bytes: int | None
    gpus: list[str]


class Provenance(TypedDict, total=False):
    git_commit: str | None
    git_dirty: bool | None
    time_utc: str | None
    versions: dict[str, str | None]
    hardware: Hardware | None
    data_fingerprint: str | None


FIELD_TYPES: dict[str, Any] = {
    **dict.fromkeys(
        (
            *("alibi_trainable", "comparison", "dtype", "fingerprint", "kind", "mode", "model", "model_dir", "name"),
            *("position_method", "protocol", "reading", "reference", "reference_dtype", "source", "state", "study"),
            *("suite", "transformers", "variant"),
        ),
        str,
    ),
    **dict.fromkeys(
        (
            *("cache_bytes", "context_tokens", "failed", "head_dim", "hidden_size", "length_tokens"),
            *("num_documents", "num_heads", "num_layers", "num_parameters", "num_queries", "num_train_tokens"),
            *("num_validation_tokens", "passed", "seed", "skipped", "step", "train_length_tokens", "trial"),
        ),
        int,
    ),
    **dict.fromkeys(
        ("extra_bytes", "num_bytes", "num_new_tokens", "num_tokens", "stride_tokens", "train_context_length"),
        int | None,
    ),
    **dict.fromkeys(
        (
            *("beta", "kl_nats_per_token", "max_error", "seconds", "times_reference", "tolerance"),
            *("train_seconds", "validation_bits_per_byte", "validation_nats_per_token", "validation_perplexity"),
        ),
        float,
    ),
    **dict.fromkeys(
        (
            *("bits_per_byte", "difference_nats", "difference_nats_sd", "max_difference", "max_logit_difference"),
            *("model_flops_utilization", "nats_per_token", "nats_per_token_sd", "perplexity"),
        ),
        float | None,
    ),
    "beta_by_layer": list[float] | None,
    "bf16": bool,
    "bias": list[list[list[float | None]]],
    "bias_after": list[list[list[float]]],
    "bias_before": list[list[list[float]]],
    "difference_nats_by_seed": list[float],
    "distances_tokens": list[int],
    "documents": list[str],
    "error": str | None,
    "fields": dict[str, Any],
    "loss_history": list[LossPoint],
    "margins_nats_by_layer": list[list[float]],
    "nats_by_position": NatsByPosition | None,
    "nats_per_token_by_seed": list[float],
    "overrides": dict[str, Any],
    "provenance": Provenance,
    "reading_fields": dict[str, Any],
    "seeds": list[int],
    "failures": list[str],
    "skipped_by_reason": dict[str, list[str]],
    "slopes": list[float],
    "slopes_by_layer": list[list[float]],
    "times_reference_quartiles": list[float],
    "windows_tokens_by_layer": list[list[int]],
}


# Fields that are above 0 wherever they are given, but for the length of a text that is yet to be written.
_POSITIVE = {
    *("beta", "context_tokens", "length_tokens", "num_bytes", "num_tokens", "perplexity"),
    *("seconds", "stride_tokens", "times_reference", "train_context_length", "train_length_tokens"),
}


def check_fields(record: dict[str, Any]) -> None:
    """Raise a ValueError that names a field of a record whose value is of another type or size than it must be.

    Every field of its kind must be there.
    """
    for field, value in record.items():
        if field in FIELD_TYPES and not is_of_type(value, FIELD_TYPES[field]):
            expected = FIELD_TYPES[field]
            raise ValueError(f"'{field}' must be {_words(expected)}, got {_shortened(value)}")
        is_unwritten = field == "length_tokens" and record["kind"].endswith("_speed") and value == 0
        if field in _POSITIVE and value is not None and value <= 0 and not is_unwritten:
            raise ValueError(f"'{field}' must be above 0, got {value}")
    if record.get("error") is not None and record["perplexity"] is not None:
        raise ValueError(f"'error' must be null where there is a perplexity, got {_shortened(record['error'])}")
    for field in _figures_due(record):
        if record.get(field, 0) is None:
            raise ValueError(f"'{field}' must be a figure, got null, where nothing failed")
    for field, length, expected in _lengths(record):
        if length != expected or not length:
            raise ValueError(f"'{field}' must hold {max(expected, 1)} values, got {length}")


def _figures_due(record: dict[str, Any]) -> tuple[str, ...]:
    """Fields that may be null in some record, but not in this one."""
    kind = record["kind"]
    if kind == "beta_trial" and record["state"] != "COMPLETE" or record.get("error") is not None:
        return ()
    if kind == "trained_beta" and record["alibi_trainable"] == "beta":
        return ("perplexity", "nats_per_token", "beta_by_layer")
    if kind == "corpus":
        return ("num_bytes",)
    if kind == "bias_by_distance":
        return ("train_context_length",)
    return ("perplexity", "nats_per_token", *(("num_tokens",) if kind in ("extrapolation", "perplexity") else ()))


def _lengths(record: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Of lists of a record that belong together: the field, its length and that of the other, none of them 0."""
    kind = record["kind"]
    if (located := record.get("nats_by_position")) is not None:
        for field in ("nats_per_token", "num_tokens"):
            yield f"nats_by_position.{field}", len(located[field]), len(located["edges_tokens"]) - 1
    if kind == "bias_matrix":
        yield "slopes", len(record["slopes"]), len(record["slopes"])
        yield "bias", len(record["bias"]), len(record["slopes"])
        for rows in record["bias"]:
            yield from (("bias", len(row), len(rows)) for row in rows or [[]])
    if kind == "bias_by_distance":
        yield "distances_tokens", len(record["distances_tokens"]), len(record["distances_tokens"])
        for field in ("bias_before", "bias_after"):
            yield field, len(record[field]), len(record["bias_before"])
            for heads in record[field]:
                yield field, len(heads), len(record[field][0])
                yield from ((field, len(curve), len(record["distances_tokens"])) for curve in heads)
    if kind == "comparison" and record["error"] is None:
        for field in ("nats_per_token_by_seed", "difference_nats_by_seed"):
            yield field, len(record[field]), len(record["seeds"])
    if kind == "trained_beta" and record["beta_by_layer"] is not None:
        yield "beta_by_layer", len(record["beta_by_layer"]), len(record["slopes_by_layer"])


def is_of_type(value: Any, expected: Any) -> bool:
    """Whether a value of JSON, at any depth, is of a type; a whole number is a float too, and none is infinite."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(is_of_type(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(is_of_type(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(is_of_type(item, arguments[1]) for item in value.values())
    if typing.is_typeddict(expected):
        hints = typing.get_type_hints(expected)
        return (
            isinstance(value, dict)
            and expected.__required_keys__ <= value.keys()
            and all(is_of_type(value[key], hints[key]) for key in hints.keys() & value.keys())
        )
    if isinstance(value, bool):
        return expected is bool
    if expected is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, expected)


def _words(expected: Any) -> str:
    if typing.is_typeddict(expected):
        return f"an object with {', '.join(typing.get_type_hints(expected))}"
    if typing.get_origin(expected) in (types.UnionType, typing.Union):
        return " or ".join(_words(argument) for argument in typing.get_args(expected))
    if typing.get_origin(expected) is list:
        return f"a list of {_words(typing.get_args(expected)[0])}"
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null"}
    return words.get(expected, "an object")


def _shortened(value: Any, longest: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."
