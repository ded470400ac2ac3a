"""Screens: which settings are best for each method, what the page says of them, and the variants that follow."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alibi_gpt_cli.main import main
from modeling_alibi_gpt.experiments.compare import ComparisonConfig
from modeling_alibi_gpt.report.report import build_report
from modeling_alibi_gpt.report.screen import best_variants, is_screen, screen_tables, screened
from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.runtime.records import write_records
from tests.support.comparison_cases import comparison, grid_of, methods


ROOT = Path(__file__).parents[2]
RATES = (0.001, 0.002, 0.004)


def screen_records() -> list[dict[str, Any]]:
    """ALiBi at three rates, RoPE at one, a learned beta at two rates of positions; names say nothing of settings."""
    fields: list[dict[str, Any]] = [{"training.learning_rate": rate} for rate in RATES]
    fields += [{"position_method": "rope", "training.learning_rate": 0.002}]
    learned = {"alibi_trainable": "beta", "training.learning_rate": 0.001}
    fields += [learned | {"position_learning_rate": factor} for factor in (1, 30)]
    fields += [{"position_method": "none", "training.learning_rate": rate} for rate in RATES[:2]]
    nats = dict(zip("abcdefgh", (4.3, 4.1, 4.2, 4.0, 4.5, 4.4, 4.6, 4.7), strict=True))
    records = comparison(dict(zip(nats, fields, strict=True)))
    for record in records:
        if record["kind"] == "comparison":
            record["nats_per_token"] = nats[record["variant"]]
    return records


BEST = {
    "alibi": {"training.learning_rate": 0.002},
    "rope": {"position_method": "rope", "training.learning_rate": 0.002},
    "alibi, learned beta": {
        **{"alibi_trainable": "beta", "training.learning_rate": 0.001},
        "position_learning_rate": 30,
    },
    "none": {"position_method": "none", "training.learning_rate": 0.001},
}


def test_the_best_settings_are_those_of_the_lowest_loss() -> None:
    assert best_variants(screen_records()) == BEST


def test_settings_at_an_edge_are_named() -> None:
    edges = {method.name: method.at_the_edge for method in screened(grid_of(screen_records()))}
    assert edges == {
        "alibi": [],
        "rope": [],
        "alibi, learned beta": ["positions \N{MULTIPLICATION SIGN}30 is the largest"],
        "none": ["0.001 is the smallest"],
    }


def test_methods_have_a_row_each_and_a_star_at_their_best() -> None:
    plain, with_positions = screen_tables(screened(grid_of(screen_records())))
    assert plain.header == ["nats per token", "0.001", "0.002", "0.004", "at an edge"]
    assert plain.rows == [
        ["alibi", "4.3000", "4.1000 *", "4.2000", "\N{EN DASH}"],
        ["rope", "\N{EN DASH}", "4.0000 *", "\N{EN DASH}", "\N{EN DASH}"],
        ["none", "4.6000 *", "4.7000", "\N{EN DASH}", "0.001 is the smallest"],
    ]
    times = "0.001, positions \N{MULTIPLICATION SIGN}"
    assert with_positions.header == ["nats per token", f"{times}1", f"{times}30", "at an edge"]
    assert [row[:3] for row in with_positions.rows] == [["alibi, learned beta", "4.5000", "4.4000 *"]]


def test_a_setting_that_failed_is_not_the_best() -> None:
    records = screen_records()
    for record in records:
        if record["kind"] == "comparison" and record["variant"] == "b":
            record |= {"error": "the loss is no number", "nats_per_token": None, "perplexity": None}
    assert best_variants(records)["alibi"] == {"training.learning_rate": 0.004}


def test_a_comparison_of_methods_is_no_screen() -> None:
    assert is_screen(grid_of(screen_records())) and not is_screen(grid_of(methods()))
    tuned = {"alibi": {}, "tuned": {"alibi_beta": 8.0, "training.learning_rate": 0.004}}
    assert not is_screen(grid_of(comparison(tuned)))
    schedules = {f"from {start}": {"alibi_beta_schedule": {"start": start, "end": 1}} for start in (32, 16)}
    assert not is_screen(grid_of(comparison({"alibi": {}, **schedules})))
    with pytest.raises(ValueError, match="got no screen"):
        best_variants(methods())
    again = [record | {"comparison": "again"} for record in screen_records()]
    with pytest.raises(ValueError, match="'alibi' was screened more than once"):
        best_variants([*screen_records(), *again])


def test_settings_may_be_words_or_missing(tmp_path: Path) -> None:
    records = comparison(
        {"a": {}, "b": {"training.learning_rate": 0.003}, "c": {"training.lr_scheduler_type": "linear"}}
    )
    for record in records:
        if record["kind"] == "comparison":
            record["nats_per_token"] = {"a": 4.3, "b": 4.1, "c": 4.2}[record["variant"]]
    build_report(records, tmp_path, title="Screen", html=False)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| as is | 0.003 | training.lr_scheduler_type linear |" in page
    assert "| alibi | 4.3000 | 4.1000 \\* | 4.2000 |" in page


def test_settings_may_be_mappings_and_lists() -> None:
    variants = {f"rate {rate}": {"training.lr_scheduler_kwargs": {"min_lr": rate}} for rate in (1e-5, 1e-4)}
    grid = grid_of(comparison({"alibi": {}, **variants}))
    assert is_screen(grid) and len(screened(grid)[0].nats) == 3


def test_a_page_of_a_screen_has_its_tables_and_no_verdicts(tmp_path: Path) -> None:
    build_report(screen_records(), tmp_path, title="Screen", claims=True, html=False)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## Settings tried, test" in page and "| alibi | 4.3000 | 4.1000 \\* |" in page
    assert "The best setting of alibi, learned beta; none is at an edge" in page
    assert "What holds" not in page and "Length extrapolation" not in page


def test_the_command_prints_variants_that_a_comparison_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(tmp_path / "screen.jsonl", screen_records())
    assert main(["screen", "--records", str(tmp_path / "screen.jsonl"), "--json"]) == 0
    *printed, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == yaml.safe_load("\n".join(printed)) == {"variants": BEST}
    write_records(tmp_path / "methods.jsonl", methods())
    assert main(["screen", "--records", str(tmp_path / "methods.jsonl")]) == 2
    assert capsys.readouterr().err.startswith("error: got no screen; expected")


def test_the_shipped_screen_has_a_row_for_every_method() -> None:
    config = load_config(ComparisonConfig, str(ROOT / "configs" / "comparison" / "screen_gutenberg.yaml"))
    records = comparison({name: fields or {} for name, fields in config.variants.items()})
    found = screened(grid_of(records))
    assert sum(len(method.nats) for method in found) == len(config.variants) == 96
    assert len(found) == 12
