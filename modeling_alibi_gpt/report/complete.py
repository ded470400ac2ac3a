"""Check that records suffice for a page: each is valid for its kind, and every comparison is complete."""

from collections.abc import Sequence
from itertools import product

from modeling_alibi_gpt.runtime.record_types import AS_TRAINED
from modeling_alibi_gpt.runtime.records import Record, check_record


# What every comparison has in addition to its cells. One on a stream has no corpus record.
_KINDS = ("training", "extrapolation")
_LABELS = {"training": ("variant", "fields"), "extrapolation": ("variant", "reading", "seed", "overrides")}


def check_page_records(records: Sequence[Record]) -> None:
    """Raise a ValueError unless there are records, each is valid for its kind and every comparison is complete."""
    if not records:
        raise ValueError("got no records; a report needs at least one")
    for record in records:
        check_record(record)
    _check_comparisons(records)


def _check_comparisons(records: Sequence[Record]) -> None:
    """Raise a ValueError that names an incomplete comparison and what it lacks."""
    names = {record["comparison"]: None for record in records if "comparison" in record}
    for name in names:
        of_name = [record for record in records if record.get("comparison") == name]
        cells = [record for record in of_name if record["kind"] == "comparison"]
        kinds = {record["kind"] for record in of_name}
        if cells or ("recall" not in kinds and kinds & {*_KINDS, "corpus"}):
            _check_comparison(f"comparison {name!r}", cells, of_name)


def _check_comparison(where: str, cells: Sequence[Record], records: Sequence[Record]) -> None:
    kinds = {record["kind"] for record in records}
    if missing := [kind for kind in ("comparison", *_KINDS) if kind not in kinds]:
        raise ValueError(f"{where} has no {missing[0]} records; pass all records that it wrote")
    for record in records:
        for field in _LABELS.get(record["kind"], ()):
            if field not in record:
                raise ValueError(f"{where}: a record of kind {record['kind']} lacks '{field}'")
    if len({cell["name"] for cell in cells}) != len({(cell["variant"], cell["reading"]) for cell in cells}):
        raise ValueError(f"{where}: each variant and reading must have a unique 'name'")
    sizes = {record["num_tokens"] for record in records if record["kind"] == "extrapolation" and not record["error"]}
    if len(sizes) != 1:
        found = ", ".join(f"{size:,}" for size in sorted(sizes)) or "none"
        raise ValueError(f"{where} must be evaluated on the same text throughout, got num_tokens {found}")
    reads = list(dict.fromkeys((cell["variant"], cell["reading"]) for cell in cells))
    protocols = {cell["protocol"] for cell in cells}
    lengths = {cell["length_tokens"] for cell in cells}
    cells_found = {(cell["variant"], cell["reading"], cell["protocol"], cell["length_tokens"]) for cell in cells}
    as_trained = [(variant, AS_TRAINED) for variant in {cells[0]["reference"], *(variant for variant, _ in reads)}]
    for (variant, reading), protocol, length in product([*reads, *as_trained], protocols, lengths):
        if (variant, reading, protocol, length) not in cells_found:
            raise ValueError(f"{where} lacks {variant!r}, {reading}, {protocol}, at {length} tokens")
