"""Records as typed data frames: one frame per kind, one row per record, in the order of the records."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

import pandas as pd

from modeling_alibi_gpt.runtime.atomic import write_text
from modeling_alibi_gpt.runtime.record_types import AS_TRAINED
from modeling_alibi_gpt.runtime.records import RECORD_TYPES, Record
from modeling_alibi_gpt.runtime.run_names import without_seed
from modeling_alibi_gpt.runtime.variants import BETA_DEFAULTS, corpus_of, what_varies


# Evaluation protocol of milestones.
MILESTONE_PROTOCOL = "nonoverlapping"

Records: TypeAlias = Sequence[Record] | pd.DataFrame


def frames(records: Iterable[Record]) -> dict[str, pd.DataFrame]:
    """Frames by kind, in order of first appearance. Records must be of known kinds and match their schemas."""
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record)
    return {kind: frame_of(group) for kind, group in by_kind.items()}


def frame_of(records: Records) -> pd.DataFrame:
    """The frame of records of one kind, with every column of the schema; a frame is returned unchanged.

    Numbers are ``int64``, ``Int64`` (if they may be missing) or ``float64``, booleans are ``bool``, and everything
    else is ``object``.
    """
    if isinstance(records, pd.DataFrame):
        return records
    schema = RECORD_TYPES[records[0]["kind"]]
    names = dict.fromkeys([*schema.model_fields, *(name for record in records for name in record)])
    optional = {name: field.default for name, field in schema.model_fields.items() if not field.is_required()}
    optional |= dict.fromkeys(names.keys() - schema.model_fields.keys())
    columns = {name: [record[name] if name in record else optional[name] for record in records] for name in names}
    frame = pd.DataFrame(columns, dtype=object)
    for column, field in schema.model_fields.items():
        frame[column] = frame[column].astype(_dtype(field.annotation))
    return _labelled(frame) if records[0]["kind"] == "comparison" else frame


def write_csv(records: Iterable[Record], folder: str | Path) -> list[str]:
    """Write one CSV file per kind of record, named after the kind, and return the paths.

    Lists and mappings are written as JSON.
    """
    paths = []
    for kind, frame in frames(records).items():
        paths.append(str(Path(folder) / f"{kind}.csv"))
        write_text(paths[-1], frame.map(_cell).to_csv(index=False))
    return paths


def pick(frame: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows whose columns equal the given values."""
    chosen = pd.Series(True, index=frame.index)
    for column, value in values.items():
        chosen &= frame[column] == value
    return frame[chosen]


def rows_of(frame: pd.DataFrame) -> list[Record]:
    """The rows as dictionaries of plain Python numbers."""
    return [{str(column): value for column, value in row.items()} for row in frame.to_dict("records")]


def distinct_names(frame: pd.DataFrame, *, merge_seeds: bool = False) -> pd.DataFrame:
    """The rows, with a name for each model and each way it was read.

    A name that several models share is followed by the location of the model, and one that was read with several
    overrides by the overrides.

    Args:
        frame: Rows of models that were measured.
        merge_seeds: Give models that differ only in the seed one name, as in ``merged_seeds``.
    """
    is_shared = frame.groupby("name")["model"].transform("nunique") > 1
    frame = frame.assign(name=frame["name"].where(~is_shared, frame["name"] + " (" + frame["model"] + ")"))
    frame = merged_seeds(frame) if merge_seeds else frame
    overrides = frame["overrides"].map(lambda fields: ", ".join(f"{key}={fields[key]}" for key in sorted(fields)))
    is_read_twice = (overrides.groupby(frame["name"]).transform("nunique") > 1) & (overrides != "")
    return frame.assign(name=frame["name"].where(~is_read_twice, frame["name"] + " (" + overrides + ")"))


def merged_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows, with one name for models that differ only in the seed: ``a-seed0`` and ``a-seed1`` become ``a``."""
    name = frame["name"].map(without_seed)
    is_shared = frame.groupby([name, frame["position_method"]])["model"].transform("nunique") > 1
    return frame.assign(name=name.where(is_shared, frame["name"]))


def alibi_first(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort for display: ALiBi, then the other position methods by name, each by model name and length."""
    keys = ["position_method", "name", *(["length_tokens"] if "length_tokens" in frame else [])]
    order = frame.assign(is_other=frame["position_method"] != "alibi").sort_values(["is_other", *keys], kind="stable")
    return order.drop(columns="is_other")


def milestone_runs(frame: pd.DataFrame) -> tuple[Record, list[Record]]:
    """The model that the trainings started from, and for each training its course.

    The course gives the perplexity at the training length before training, the tokens after which it is as good as the
    first model, and the perplexities at the end.
    """
    first, measured = frame.iloc[0], frame[frame["error"].isna()]
    at_home = {"length_tokens": first["train_length_tokens"], "protocol": MILESTONE_PROTOCOL}
    goal = pick(measured, name=first["name"], **at_home)["perplexity"].min()
    start = {"name": first["name"], "num_train_tokens": first["num_train_tokens"], "perplexity": goal}
    runs = []
    for name, group in measured[measured["name"] != start["name"]].groupby("name", sort=False):
        near = pick(group, **at_home)
        reached = near.loc[near["perplexity"] <= goal, "num_train_tokens"].tolist()
        last = pick(group, step=near["step"].iloc[-1]).sort_values("length_tokens", kind="stable")
        run = {"name": name, "length_tokens": first["train_length_tokens"], "before": near["perplexity"].iloc[0]}
        run |= {"reached": reached[0] if reached else None, "num_train_tokens": near["num_train_tokens"].iloc[-1]}
        protocols = [(protocol, pick(last, protocol=protocol)) for protocol in group["protocol"].unique()]
        run["ends"] = {p: list(zip(rows["length_tokens"], rows["perplexity"], strict=True)) for p, rows in protocols}
        runs.append(run)
    return start, runs


def _labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """Comparison cells, with fields that old records lack filled in, and with separate columns for beta and slopes."""
    rows = rows_of(frame)
    varies = [row["varies"] or what_varies(row["position_method"], row["fields"]) for row in rows]
    settings = [BETA_DEFAULTS | row["fields"] | row["reading_fields"] for row in rows]
    return frame.assign(
        corpus=[row["corpus"] or corpus_of(row["comparison"]) for row in rows],
        varies=varies,
        is_trained=frame["reading"] == AS_TRAINED,
        blocks=[_blocks(row) for row in rows],
        reads_beta=[row["reading_fields"].keys() <= BETA_DEFAULTS.keys() for row in rows],
        beta=[float(setting["alibi_beta"]) for setting in settings],
        slope_kind=[setting["alibi_slope_kind"] for setting in settings],
        learns=[setting["alibi_trainable"] != "none" for setting in settings],
    )


def _blocks(row: Record) -> list[list[float]] | None:
    """Nats by seed and block of text, or one row of means over seeds if a record has only those."""
    if row["nats_per_token_by_seed_and_block"] is not None or row["nats_per_token_by_block"] is None:
        return row["nats_per_token_by_seed_and_block"]
    return [row["nats_per_token_by_block"]]


def _dtype(annotation: Any) -> str:
    """The column type for the annotation of a field, which may be a union."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    choices = {get_args(member)[0] if get_origin(member) is Annotated else member for member in members}
    if choices == {int}:
        return "int64"
    if choices == {int, type(None)}:
        return "Int64"
    return "bool" if choices == {bool} else "float64" if float in choices else "object"


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
