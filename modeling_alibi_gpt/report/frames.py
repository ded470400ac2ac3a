"""Records as typed data frames: one frame per kind, one row per record, in the order of the records."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path, PurePath
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
Frames: TypeAlias = dict[str, pd.DataFrame]  # by kind of record


def frames(records: Iterable[Record]) -> Frames:
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
    overrides, dtypes, attention back ends or strides by these.

    Args:
        frame: Rows of models that were measured.
        merge_seeds: Give models that differ only in the seed one name, as in ``merged_seeds``.
    """
    is_shared = frame.groupby("name")["model"].transform("nunique") > 1
    frame = frame.assign(name=frame["name"].where(~is_shared, frame["name"] + " (" + frame["model"] + ")"))
    frame = merged_seeds(frame) if merge_seeds else frame
    overrides = frame["overrides"].map(lambda fields: ", ".join(f"{key}={fields[key]}" for key in sorted(fields)))
    settings = [_setting(frame, name) for name in ("dtype", "attn_implementation")]
    for ways in (overrides, *settings, _strides(frame)):
        is_read_twice = (ways.groupby(frame["name"]).transform("nunique") > 1) & (ways != "")
        frame = frame.assign(name=frame["name"].where(~is_read_twice, frame["name"] + " (" + ways + ")"))
    return frame


def _setting(frame: pd.DataFrame, name: str) -> "pd.Series[str]":
    return frame["provenance"].map(lambda where: str(where.get(name) or ""))


def _strides(frame: pd.DataFrame) -> "pd.Series[str]":
    """Words for the stride, in tokens or as a share of the length, of windows that were read with several strides.

    Whatever gives the fewest names is taken; the default of a quarter of the length may go without words.
    """
    no_words = pd.Series("", index=frame.index)
    if "stride_tokens" not in frame:
        return no_words
    strides = frame["stride_tokens"].astype("float64")
    of_window = [frame[column] for column in ("name", "protocol", "length_tokens")]
    is_shared = strides.groupby(of_window).transform("nunique") > 1
    reads = is_shared.groupby([frame["name"], frame["protocol"]]).transform("any") & strides.notna()
    tokens = strides.map("stride {:,.0f}".format)
    shares = (strides / frame["length_tokens"]).map("stride {:.3g} of the length".format)
    beside_default = tokens.where(strides != frame["length_tokens"] // 4, "")
    return no_words.where(~reads, min(tokens, shares, beside_default, key=lambda words: words[reads].nunique()))


def separate_studies(records: Iterable[Record]) -> list[Record]:
    """The records, with a number appended to the name of a study that another sweep has, too.

    Records of one sweep are in one piece, so a trial that occurs again is of another sweep.
    """
    separated, seen, places = [], set(), Counter[str]()
    for record in records:
        if record["kind"] == "beta_trial":
            name = record["study"]
            if (name, places[name], record["mode"], record["trial"]) in seen:
                places[name] += 1
            seen.add((name, places[name], record["mode"], record["trial"]))
        study = str(record.get("study"))
        is_another = record["kind"] in ("beta_trial", "trained_beta") and places[study] > 0
        separated.append(record | {"study": f"{study} ({places[study] + 1})"} if is_another else record)
    return separated


def by_text(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows by the text that was read, with words for it that are empty if there is only one text."""
    where = frame["provenance"]
    keys = where.map(lambda found: str([found.get(name) for name in ("data_fingerprint", "max_tokens")]))
    groups = [group for _, group in frame.groupby(keys, sort=False)]
    return [("" if len(groups) == 1 else _text_in_words(group["provenance"].iloc[0]), group) for group in groups]


def by_folder(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows by the folder of their models, with its last parts, if several folders have seeds of one name.

    Comparisons name their models alike, whatever their size. Without such names, all rows are one group without words.
    """
    folders, names = frame["model"].map(lambda model: PurePath(model).parent), frame["name"].map(without_seed)
    if not ((folders.groupby(names).transform("nunique") > 1) & (names != frame["name"])).any():
        return [("", frame)]
    different = set(folders)
    num_parts = next(n for n in count(1) if len({folder.parts[-n:] for folder in different}) == len(different))
    return [
        (PurePath(*folder.parts[-num_parts:]).as_posix(), group)
        for folder, group in frame.groupby(folders, sort=False)
    ]


def has_several_streams(frame: pd.DataFrame) -> bool:
    """Whether models read one text as different tokens, so that only bits per byte can be compared."""
    return frame["provenance"].map(lambda where: where.get("stream_fingerprint")).nunique() > 1


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


def named_by_seed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows, with the seed appended to names that several seeds share."""
    seeds = frame["provenance"].map(lambda where: str(where.get("seed")))
    is_shared = seeds.groupby(frame["name"]).transform("nunique") > 1
    return frame.assign(name=frame["name"].where(~is_shared, frame["name"] + " (seed " + seeds + ")"))


def milestone_runs(frame: pd.DataFrame) -> tuple[Record | None, list[Record]]:
    """The model that the trainings were fine-tuned from, and for each training its course.

    The model is the first one if it was measured once, at its training length, and the trainings were measured before
    their first step; without one, the trainings stand alone.
    A course gives the perplexity at the training length at first, the tokens after which it is as good as the model,
    and the perplexities at the end.
    """
    measured = frame[frame["error"].isna()]
    at_home = {"protocol": MILESTONE_PROTOCOL, "length_tokens": frame["train_length_tokens"].iloc[0]}
    first = pick(frame, name=frame["name"].iloc[0])
    goals = pick(measured, name=first["name"].iloc[0], **at_home)["perplexity"].tolist()
    first_steps = frame[frame["name"] != first["name"].iloc[0]].groupby("name")["step"].min()
    start = None
    if first["step"].nunique() == 1 and goals and (first_steps == 0).all():
        start = {name: first[name].iloc[0] for name in ("name", "num_train_tokens")} | {"perplexity": goals[0]}
        measured = measured[measured["name"] != start["name"]]
    runs = []
    for name, group in measured.groupby("name", sort=False):
        near = pick(group, **at_home)
        reached = near.loc[near["perplexity"] <= start["perplexity"], "num_train_tokens"].tolist() if start else []
        last = pick(group, step=group["step"].iloc[-1]).sort_values("length_tokens", kind="stable")
        run = {
            "name": name,
            "length_tokens": at_home["length_tokens"],
            "before": near["perplexity"].iloc[0] if len(near) else None,
            "reached": reached[0] if reached else None,
            "first_tokens": group["num_train_tokens"].iloc[0],
            "num_train_tokens": last["num_train_tokens"].iloc[0],
        }
        protocols = [(protocol, pick(last, protocol=protocol)) for protocol in group["protocol"].unique()]
        run["ends"] = {p: list(zip(rows["length_tokens"], rows["perplexity"], strict=True)) for p, rows in protocols}
        runs.append(run)
    return start, runs


def _text_in_words(where: Record) -> str:
    source, split, max_tokens = (where.get(name) for name in ("source", "split", "max_tokens"))
    words = source or f"text {where.get('data_fingerprint') or 'without a name'}"
    words += f", {split}" if split not in (None, "all") else ""
    return words + (f", at most {max_tokens:,} tokens" if max_tokens else "")


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
