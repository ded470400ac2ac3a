"""Recompute the tables and findings about the use of distant text, in plain loops, without code of the report."""

import math
import re
from functools import partial

from tests.support.recomputation import DASH, MINUS, PLUS_MINUS, Gap, Record, half_width, mean, of_kind, signed, tokens


NUM_NAMES = {"main_gutenberg_128": 6, "main_gutenberg_256": 9}  # by folder of the models
CONTEXT = "Use of distant text"
WORDS = {"replaced": "replaced", "cut": "cut off"}


def readings(folder: str, name: str, reading: str, kept: int | None) -> list[Record]:
    """The records of all seeds of a variant, whose models end with the seed."""
    model = re.compile(re.escape(f"runs/comparison/{folder}/{name}") + r"-seed\d")
    found = [
        record
        for record in of_kind("context")
        if model.fullmatch(record["model"])
        if (record["reading"], record["kept_tokens"]) == (reading, kept)
    ]
    assert len(found) == 3 and len({record["name"] for record in found}) == 3
    return sorted(found, key=lambda record: record["name"])


def above_whole(folder: str, name: str, reading: str, kept: int) -> Gap:
    gap, by_block = Gap(), []
    parts, wholes = readings(folder, name, reading, kept), readings(folder, name, "whole", None)
    for part, whole in zip(parts, wholes, strict=True):
        assert part["name"] == whole["name"]
        assert math.isclose(part["difference_nats"], part["nats_per_token"] - whole["nats_per_token"], abs_tol=1e-12)
        gap.append(part["nats_per_token"] - whole["nats_per_token"])
        blocks = zip(part["nats_per_token_by_block"], whole["nats_per_token_by_block"], strict=True)
        by_block.append([one - other for one, other in blocks])
    gap.by_block = by_block
    return gap


def cell(gap: Gap) -> str:
    return f"{signed(mean(gap))} {PLUS_MINUS} {half_width(gap):.3f}"


def check_context(folder: str, rows: list[list[str]]) -> None:
    header, *body = rows
    kept = [tokens(text) for text in header[2:-1]]
    assert kept == [32, 64, 128, 256, 512, 1024] and len(body) == 2 * NUM_NAMES[folder]
    for name, reading, *cells, whole in body:
        assert [text.replace(f"{MINUS}0.000", "+0.000") for text in cells] == [
            cell(above_whole(folder, name, reading, each)).replace(f"{MINUS}0.000", "+0.000") for each in kept
        ]
        wholes = readings(folder, name, "whole", None)
        assert whole == f"{mean([record['nats_per_token'] for record in wholes]):.4f}"


def check_last_occurrences(folder: str, rows: list[list[str]]) -> None:
    header, counts, *body = rows
    located = readings(folder, "alibi", "whole", None)[0]["nats_by_last_occurrence"]
    edges, numbers = located["edges_tokens"], located["num_tokens"]
    columns = [column for column in range(len(numbers)) if numbers[column] > 0]
    assert header[2:] == [f"{edges[column]:,} to {edges[column + 1] - 1:,}" for column in columns] + ["not before"]
    assert counts[2:] == [f"{numbers[column]:,}" for column in columns] + [f"{located['not_before_num_tokens']:,}"]
    assert sum(numbers) + located["not_before_num_tokens"] == 128 * 64
    assert len(body) == 2 * NUM_NAMES[folder]
    for name, reading, *cells in body:
        part = ("whole", None) if reading == "whole" else ("cut", 128)
        records = readings(folder, name, *part)
        bins = [record["nats_by_last_occurrence"] for record in records]
        expected = [mean([each["nats_per_token"][column] for each in bins]) for column in columns]
        expected.append(mean([each["not_before_nats_per_token"] for each in bins]))
        assert DASH not in cells and cells == [f"{value:.4f}" for value in expected]


def check_context_finding(folder: str, line: str) -> None:
    """A finding names a sign if the mean exceeds half of its interval and all seeds agree on it."""
    name = line.partition(", keeping 128 tokens")[0]
    for reading, words in WORDS.items():
        gap = above_whole(folder, name, reading, 128)
        is_seen = abs(mean(gap)) > half_width(gap) and (min(gap) > 0 or max(gap) < 0)
        verdict = (
            ("higher" if mean(gap) > 0 else "lower") + " than the whole" if is_seen else "no difference was detected"
        )
        assert f"{words} {cell(gap)} nats, {verdict}" in line, line


TABLES = {
    f"{title}, {folder}": partial(check, folder)
    for folder in NUM_NAMES
    for title, check in {
        CONTEXT: check_context,
        "Loss by distance of the last occurrence": check_last_occurrences,
    }.items()
}
