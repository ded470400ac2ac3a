"""Pages of comparisons: what the tables and the findings say is what the records hold."""

from pathlib import Path
from typing import Any

import pytest

from modeling_alibi_gpt.report.comparison import AFTER_TRAINING, best_moves
from modeling_alibi_gpt.report.comparison_sections import comparison_sections, largest_move
from modeling_alibi_gpt.report.formats import format_change
from modeling_alibi_gpt.report.frames import frames
from modeling_alibi_gpt.report.page import Section
from modeling_alibi_gpt.report.report import build_report
from modeling_alibi_gpt.report.statistics import Difference, between_trainings
from modeling_alibi_gpt.report.tables import beta_comparison_table, beta_curves, differences_table
from modeling_alibi_gpt.runtime.records import read_records
from tests.support import comparison_cases
from tests.support.comparison_cases import beta_sweep, comparison, grid_of, methods, mixed
from tests.support.example_records import trained_beta_record


def sections_of(records: list[dict[str, Any]], **options: Any) -> list[Section]:
    return comparison_sections(frames(records), **options)


def titles_of(records: list[dict[str, Any]], **options: Any) -> list[str]:
    return [section.title for section in sections_of(records, **options)]


def signs(differences: dict[Any, Difference | None]) -> dict[Any, int | None]:
    return {name: difference and difference.sign for name, difference in differences.items()}


def test_a_change_is_written_with_its_seeds() -> None:
    assert format_change(between_trainings([0.03, 0.05])) == "+0.040 (+0.030, +0.050)"
    assert format_change(between_trainings([0.04, 0.05, 0.06])) == "+0.050 \N{PLUS-MINUS SIGN} 0.025"
    assert format_change(between_trainings([-0.5])) == "\N{MINUS SIGN}0.500" and format_change(None) == "\N{EN DASH}"


def test_changes_and_differences_sort_the_methods() -> None:
    grid = grid_of(methods())
    assert signs(grid.changes("nonoverlapping")) == {"alibi": -1, "rope": 1, "none": -1}
    assert signs(grid.changes("sliding")) == {"alibi": 0, "rope": 1, "none": 0}
    assert signs(grid.differences(128)) == {"rope": -1, "none": 1}
    assert signs(grid.differences(1024)) == {"rope": 1, "none": 1}


def test_a_reading_is_compared_with_the_same_model_as_trained() -> None:
    grid = grid_of(methods())
    assert grid.scaled == ["rope"]
    (gain,) = grid.gains("rope", 1024).values()
    assert gain is not None and gain.by_seed == pytest.approx((-0.3, -0.3, -0.3)) and gain.sign == -1


def test_findings_hold_the_numbers_of_their_comparison() -> None:
    """Which numbers stand in a finding, and in which group of names; the words are the template's."""
    by_title = {section.title.split(",")[0]: section.findings for section in sections_of(methods())}
    near = next(finding for finding in by_title["Length extrapolation"] if "128 tokens with" in finding)
    lower, higher = near.split("; ")
    assert "rope \N{MINUS SIGN}0.050 \N{PLUS-MINUS SIGN} 0.000" in lower and "none" not in lower
    assert "none +0.300 \N{PLUS-MINUS SIGN} 0.000" in higher and "rope" not in higher
    (scaling,) = by_title["Scaling at inference"]
    each = ", ".join(["\N{MINUS SIGN}0.300"] * 3)
    assert f"ntk \N{MINUS SIGN}0.300 ({each})" in scaling and "1,024" in scaling


def test_differences_stand_with_their_spread() -> None:
    grid = grid_of(methods())
    table = differences_table(grid, grid.as_trained)
    assert [row[0] for row in table.rows] == ["none", "none", "rope", "rope"]
    assert table.rows[2][2] == "\N{MINUS SIGN}0.050 \N{PLUS-MINUS SIGN} 0.000"


def test_the_best_beta_is_found_for_each_kind_of_slopes() -> None:
    grid = grid_of(beta_sweep())
    for kind in ("geometric", "uniform"):
        curves = grid.curves(kind)
        assert list(curves) == [128, 1024] and not best_moves(curves.values())
        for curve in curves.values():
            assert list(curve) == [0.5, 1.0, 2.0, 4.0]
            assert (curve.lowest, curve.choice.level) == (2.0, (2.0,))
            assert curve.between(1.0, 2.0).by_seed == pytest.approx((0.03, 0.03, 0.03))
    level = grid.curve("uniform", 128).lowest_above(grid.curve("geometric", 128))
    assert level is not None and level.by_seed == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    assert grid.own_beta == 1.0 and signs(grid.curve(AFTER_TRAINING, 128).above(1.0)) == {4.0: 1}
    assert grid.learned == {"learned beta": 1.0}
    table = beta_comparison_table(beta_curves(grid, "sliding"))
    assert [row[0] for row in table.rows if row[1].endswith("*")] == ["2"]


def test_a_learned_bias_is_said_to_have_moved_within_the_training_length() -> None:
    row = {"variant": "t5", "distances_tokens": [0, 1, 128], "train_context_length": 128}
    assert largest_move(row | {"bias_before": [[[0.0, 0.5, 0.0]]], "bias_after": [[[1.0, 0.25, 9.0]]]}) == 1.25


def test_a_page_is_built_with_the_paper_beside(tmp_path: Path) -> None:
    published = read_records(Path(__file__).parents[2] / "results" / "published_wt103.jsonl")
    paths = build_report(
        [*methods(), *published], tmp_path, title="Results", page="RESULTS", figures_folder="pictures", html=False
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["RESULTS.md", "pictures"]
    text = Path(paths["markdown"]).read_text(encoding="utf-8")
    (rope,), (alibi,) = (
        [line for line in text.splitlines() if line.startswith(f"- {method}: ") and "15,512" in line]
        for method in ("rope", "alibi")
    )
    assert "+1.373" in rope and "+0.550" in rope and "\N{MINUS SIGN}0.075" in alibi
    assert "emma" in text and all(Path(path).stat().st_size > 10_000 for path in paths["figures"])
    assert all(f"(pictures/{Path(path).name})" in text for path in paths["figures"])


@pytest.mark.parametrize(
    ("growth", "words"),
    [(0.2, "the same direction"), (0.05 / 3, "no change was detected"), (0.0, "the opposite direction")],
)
def test_a_change_that_was_not_detected_has_no_direction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, growth: float, words: str
) -> None:
    """The paper's RoPE rises. Here, windows that do not overlap gain 0.05 nats besides three times the growth."""
    monkeypatch.setitem(comparison_cases.METHODS, "rope", (-0.05, growth))
    published = read_records(Path(__file__).parents[2] / "results" / "published_wt103.jsonl")
    paths = build_report([*methods(), *published], tmp_path, title="T", html=False)
    (line,) = (
        line
        for line in Path(paths["markdown"]).read_text(encoding="utf-8").splitlines()
        if line.startswith("- rope: the paper")
    )
    assert words in line


def test_comparisons_keep_out_of_other_sections() -> None:
    assert titles_of(methods()) == [
        "Test",
        "Length extrapolation, test",
        "Loss by position, test",
        "Scaling at inference, test",
    ]


def test_verdicts_are_for_those_who_ask_for_them(tmp_path: Path) -> None:
    assert titles_of(methods(), claims=True)[0] == "What holds" and "What holds" not in titles_of(methods())
    text = {}
    for claims in (True, False):
        paths = build_report(methods(), tmp_path / str(claims), title="T", claims=claims)
        text[claims] = Path(paths["markdown"]).read_text(encoding="utf-8")
    assert "## What holds" in text[True] and "## What holds" not in text[False]


def test_a_comparison_of_betas_and_methods_has_the_sections_of_both(tmp_path: Path) -> None:
    beta = "\N{GREEK SMALL LETTER BETA}"
    assert titles_of(mixed()) == [
        "Test",
        "Length extrapolation, test",
        "Loss by position, test",
        "Scaling at inference, test",
        f"Perplexity against {beta}, test",
    ]
    methods_part, betas_part = grid_of(mixed()).split()
    assert methods_part is not None and methods_part.variants == grid_of(mixed()).variants
    assert betas_part is not None and betas_part.variants == ["alibi", "beta 2", "beta 4", "learned"]
    paths = build_report(mixed(), tmp_path, title="T")
    text = Path(paths["markdown"]).read_text(encoding="utf-8")
    assert "| rope | sliding" in text and "| rope, yarn | sliding" in text and "| learned | sliding" in text
    names = [Path(path).name for path in paths["figures"]]
    of_methods = ["test_training.png", "test.png", "test_differences.png", "test_positions.png"]
    assert names == [*of_methods, "test_rope_scaling.png", "test_beta.png"]


def test_a_reference_of_another_method_is_no_beta() -> None:
    variants = {"rope": {"position_method": "rope"}, "alibi": {}, "beta 2": {"alibi_beta": 2.0}}
    methods_part, betas_part = grid_of(comparison(variants)).split()
    assert methods_part is not None and (methods_part.reference, methods_part.alibi) == ("rope", "alibi")
    assert betas_part is not None and betas_part.reference == "alibi"
    assert list(betas_part.curve("geometric", 128)) == [1.0, 2.0]
    (section,) = [
        section
        for section in sections_of(comparison(variants))
        if "against \N{GREEK SMALL LETTER BETA}" in section.title
    ]
    assert section.findings and not any("rope" in finding for finding in section.findings)


def test_a_comparison_without_sliding_windows_is_read_by_those_it_has() -> None:
    records = [record for record in mixed() if record.get("protocol") != "sliding"]
    assert len(titles_of(records, claims=True)) == 6


def test_a_sweep_of_geometric_slopes_alone_says_nothing_of_others() -> None:
    records = comparison({"geometric 1": {}, "geometric 2": {"alibi_beta": 2.0}})
    assert [record["kind"] for record in records].count("training") == 6
    assert titles_of(records) == ["Test", "Perplexity against \N{GREEK SMALL LETTER BETA}, test"]
    assert len(sections_of(records)[1].findings) == 3
    table = beta_comparison_table(beta_curves(grid_of(records), "sliding"))
    assert [cell.split(",")[0] for cell in table.header[1:]] == ["geometric", "geometric"]


def test_learned_betas_are_said_to_start_where_they_did(tmp_path: Path) -> None:
    starts = {
        "alibi": {},
        "beta 8": {"alibi_beta": 8.0},
        "learned": {"alibi_trainable": "beta"},
        "steep": {"alibi_trainable": "slopes", "alibi_beta": 16.0, "alibi_bias_max": 16.0},
    }
    records = comparison(starts)
    for trainable, variant in (("beta", "learned"), ("slopes", "steep")):
        records.append(trained_beta_record(trainable, 0) | {"comparison": "test", "variant": variant})
    text = Path(build_report(records, tmp_path, title="T")["markdown"]).read_text(encoding="utf-8")
    assert "Every layer starts from one \u03b2, or from its slopes: learned from 1; steep from 16." in text
