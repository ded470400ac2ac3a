"""Loss with less of the context: what a model is given, how far back tokens occurred, and rows that resume."""

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest

from alibi_gpt_cli.main import main
from modeling_alibi_gpt.evaluation import grid
from modeling_alibi_gpt.evaluation.context import ContextConfig, ContextWindows, _by_last_occurrence, run_context
from modeling_alibi_gpt.report.context_tables import context_table
from modeling_alibi_gpt.report.tables import table_text
from modeling_alibi_gpt.runtime.records import read_checked_records


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("books")
    for number, words in enumerate((["plan", "window", "token"], ["slope", "bias", "score"], ["short"])):
        length = 10 if number == 2 else 500
        (folder / f"{number}.txt").write_text(" ".join(random.Random(0).choices(words, k=length)), encoding="utf-8")
    return folder


@pytest.fixture
def config(make_folder, books: Path, tmp_path: Path) -> ContextConfig:
    return ContextConfig(
        models=[make_folder("alibi")],
        source=f"text:{books}/*.txt",
        kept_tokens=[8, 16],
        scored_tokens=4,
        context_tokens=64,
        num_windows=20,
        output=str(tmp_path / "rows.jsonl"),
    )


def windows() -> ContextWindows:
    whole = np.array([[1, 2, 3, 1, 4, 4, 2, 5, 3], [9, 8, 7, 6, 5, 4, 3, 2, 1]])
    return ContextWindows(whole=whole, others=-whole[:, :-1], scored_tokens=3, bin_edges=[1, 2, 6, 9])


def test_what_is_far_is_replaced_or_cut_and_what_is_near_is_kept() -> None:
    own = windows()
    assert (own.read("whole", None) == own.whole).all()
    # The first scored token, the third from the end, is predicted from two tokens of its own.
    assert own.read("replaced", 2)[0].tolist() == [-1, -2, -3, -1, 4, 4, 2, 5, 3]
    assert own.read("cut", 2)[0].tolist() == [4, 4, 2, 5, 3]
    assert own.read("replaced", 6)[0].tolist() == own.whole[0].tolist()


def test_last_occurrences_are_counted_in_the_whole_window() -> None:
    assert windows().last_occurrence.tolist() == [[5, 0, 6], [0, 0, 0]]


def test_losses_are_those_of_the_tokens_in_each_bin() -> None:
    found = _by_last_occurrence(windows(), np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert found == {
        "edges_tokens": [1, 2, 6, 9],
        "nats_per_token": [None, 1.0, 3.0],
        "num_tokens": [0, 1, 1],
        "not_before_nats_per_token": (2 + 4 + 5 + 6) / 4,
        "not_before_num_tokens": 4,
    }


def test_there_is_a_row_for_every_reading(config: ContextConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run_context(config)
    assert [(row["reading"], row["kept_tokens"]) for row in rows] == [
        ("whole", None),
        *(("replaced", k) for k in (8, 16)),
        *(("cut", k) for k in (8, 16)),
    ]
    whole, *others = rows
    counts = whole["nats_by_last_occurrence"]
    assert sum(counts["num_tokens"]) + counts["not_before_num_tokens"] == 20 * 4
    for row in others:
        assert row["difference_nats"] == pytest.approx(row["nats_per_token"] - whole["nats_per_token"], abs=1e-12)
        assert row["difference_nats"] != 0
        assert row["nats_by_last_occurrence"]["num_tokens"] == counts["num_tokens"]
        assert len(row["nats_per_token_by_block"]) == 16
    assert whole["difference_nats"] is None
    bins = [*counts["nats_per_token"], counts["not_before_nats_per_token"]]
    numbers = [*counts["num_tokens"], counts["not_before_num_tokens"]]
    total = sum(nats * number for nats, number in zip(bins, numbers, strict=True) if number)
    assert total / 80 == pytest.approx(whole["nats_per_token"], abs=1e-12)
    assert read_checked_records(config.output) == rows
    assert table_text(context_table(rows)).splitlines()[0].split() == ["model", "beyond", "8", "16", "whole"]
    monkeypatch.setattr(grid, "load_causal_lm", None)
    assert run_context(config) == rows


def test_a_part_that_is_missing_is_measured_alone(config: ContextConfig) -> None:
    rows = run_context(config)
    lines = Path(config.output).read_text(encoding="utf-8").splitlines(keepends=True)
    Path(config.output).write_text("".join(lines[:-1]), encoding="utf-8")
    again = run_context(config)
    assert again[:-1] == rows[:-1]
    assert again[-1]["difference_nats"] == rows[-1]["difference_nats"]


def test_text_that_no_head_can_see_is_worth_nothing(config: ContextConfig) -> None:
    """With slopes this steep a token sees hardly more than itself, so that replacing what is far changes nothing."""
    rows = run_context(dataclasses.replace(config, overrides={"alibi_beta": 1e4}))
    assert [row["difference_nats"] for row in rows[1:]] == [pytest.approx(0, abs=1e-6)] * 4


def test_no_window_crosses_from_one_document_to_the_next(config: ContextConfig, tokenizer, monkeypatch) -> None:
    given = []

    def score(model: object, sequences: np.ndarray, num_scored: int, **_: object) -> tuple[np.ndarray, np.ndarray]:
        given.append(sequences)
        return np.ones((len(sequences), num_scored)), np.ones((len(sequences), num_scored), dtype=bool)

    monkeypatch.setattr("modeling_alibi_gpt.evaluation.context.score_tails", score)
    run_context(config)
    whole, replaced = given[0], next(each for each in given[1:] if each.shape[1] == 65)
    for row, mixed in zip(whole, replaced, strict=True):
        text, far = tokenizer.decode(row), tokenizer.decode(mixed[: 65 - 4 - 8])
        is_first = any(word in text for word in ("plan", "window", "token"))
        assert is_first != any(word in text for word in ("slope", "bias", "score"))
        assert is_first != any(word in far for word in ("plan", "window", "token"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 100}, "max_tokens is not used here"),
        ({"kept_tokens": [0]}, "'kept_tokens\\[0\\]' must be at least 1, got 0"),
        ({"kept_tokens": [61]}, r"must be at most context_tokens \(64\), got \[61\] and 4"),
        ({"num_windows": 0}, "'num_windows' must be at least 1, got 0"),
        ({"num_windows": 10**6}, "lower num_windows to at most that"),
        ({"context_tokens": 10**5}, "expected at least 2 documents of more than 100000 tokens, got 0 of 3"),
    ],
)
def test_impossible_grids_are_refused_before_anything_is_written(
    config: ContextConfig, monkeypatch: pytest.MonkeyPatch, settings: dict, message: str
) -> None:
    monkeypatch.setattr(grid, "load_causal_lm", None)
    with pytest.raises(ValueError, match=message):
        run_context(dataclasses.replace(config, **settings))
    assert not Path(config.output).exists()


def test_sizes_follow_from_the_training_length(config: ContextConfig) -> None:
    rows = run_context(dataclasses.replace(config, kept_tokens=None, context_tokens=None))
    assert rows[0]["context_tokens"] == 256
    assert [row["kept_tokens"] for row in rows if row["reading"] == "cut"] == [4, 8, 16, 32, 64, 128]
    assert rows[0]["nats_by_last_occurrence"]["edges_tokens"] == [1, 4, 16, 32, 64, 128, 256, 257]


def test_the_command_ends_with_the_rows_in_short(config: ContextConfig, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"context_tokens": 64, "scored_tokens": 4, "num_windows": 20, "kept_tokens": [8]}
    words = ["context", "--models", *config.models, "--data", config.source, "--output", config.output, "--json"]
    assert main([*words, *(word for key, value in sizes.items() for word in ("--set", f"{key}={value}"))]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    rows = read_checked_records(config.output)
    fields = ("name", "reading", "kept_tokens", "nats_per_token", "difference_nats", "error")
    assert json.loads(last)["rows"] == [{field: row[field] for field in fields} for row in rows] and len(rows) == 3
