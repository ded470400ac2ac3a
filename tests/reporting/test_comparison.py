"""Pages of comparisons: what the tables and the findings say is what the records hold."""

from pathlib import Path
from typing import Any

from modeling_alibi_gpt.reporting.beta_comparison import beta_comparison_table
from modeling_alibi_gpt.reporting.comparison import comparison_sections
from modeling_alibi_gpt.reporting.findings import (
    beta_curve,
    beta_findings,
    extrapolation_findings,
    learned_bias_findings,
    scaling_findings,
)
from modeling_alibi_gpt.reporting.grid import format_change
from modeling_alibi_gpt.reporting.records import read_records
from modeling_alibi_gpt.reporting.report import build_report
from modeling_alibi_gpt.reporting.statistics import between_trainings
from modeling_alibi_gpt.reporting.tables import differences_table, group_by
from tests.support.comparison_cases import beta_sweep, comparison, grid_of, methods, mixed


def titles_of(records: list[dict[str, Any]], **options: Any) -> list[str]:
    by_kind = group_by(records, lambda record: record["kind"])
    return [section.title for section in comparison_sections(by_kind, **options)]


def test_a_change_is_written_with_its_seeds() -> None:
    assert format_change(between_trainings([0.03, 0.05])) == "+0.040 (+0.030, +0.050)"
    assert format_change(between_trainings([-0.5])) == "\N{MINUS SIGN}0.500" and format_change(None) == "\N{EN DASH}"


def test_findings_sort_the_methods() -> None:
    alone, early, whole, sliding, near, far = extrapolation_findings(grid_of(methods()))
    assert alone.startswith("alibi from 128 to 1,024 tokens") and "sliding +0.000" in alone
    assert "lower with non-overlapping windows and no different with sliding ones" in early
    assert "lower: alibi" in whole and "higher: rope +0.550" in whole
    assert "no different: alibi +0.000 (+0.000, +0.000), none +0.003" in sliding and "higher: rope +0.600" in sliding
    assert "lower: rope" in near and "higher: none +0.300" in near
    assert "higher: rope +0.550" in far and "none" in far


def test_findings_on_scaling_compare_with_the_same_model() -> None:
    (finding,) = scaling_findings(grid_of(methods()))
    assert finding.startswith("rope at 1,024 tokens")
    assert "lower: ntk \N{MINUS SIGN}0.300 (\N{MINUS SIGN}0.300, \N{MINUS SIGN}0.300)" in finding


def test_differences_stand_with_their_spread() -> None:
    grid = grid_of(methods())
    table = differences_table(grid, grid.as_trained)
    assert [row[0] for row in table.rows] == ["none", "none", "rope", "rope"]
    assert table.rows[2][2] == "\N{MINUS SIGN}0.050 \N{PLUS-MINUS SIGN} 0.000"


def test_the_best_beta_is_found_for_each_kind_of_slopes() -> None:
    grid = grid_of(beta_sweep())
    betas = [0.5, 1.0, 2.0, 4.0]
    assert list(beta_curve(grid, "uniform", "sliding", 128)) == betas
    near, far, moves, *_, level, posthoc, _, learned = beta_findings(grid)
    assert "lowest at \N{GREEK SMALL LETTER BETA} 2," in near and "costs +0.030 (+0.030, +0.030)" in near
    assert "all others are told apart from it." in near and "1,024 tokens" in far and "not seen to move" in moves
    assert "the best uniform slope is +0.000 (+0.000, +0.000) above the best geometric" in level
    assert posthoc.endswith("with another \N{GREEK SMALL LETTER BETA}: higher: 4 +0.040 (+0.040, +0.040).")
    assert learned.startswith("learned beta against geometric 1, sliding: +0.000")
    stars = [row[0] for row in beta_comparison_table(grid, "sliding").rows if row[1].endswith("*")]
    assert stars == ["2"]


def test_a_learned_bias_is_said_to_have_moved_within_the_training_length() -> None:
    record = {"variant": "t5", "distances_tokens": [0, 1, 128], "train_context_length": 128}
    moved = record | {"bias_before": [[[0.0, 0.5, 0.0]]], "bias_after": [[[1.0, 0.25, 9.0]]]}
    assert learned_bias_findings([moved]) == [
        "t5: within the training length no bias moved further than 1.25, against that of distance 0."
    ]


def test_a_page_is_built_with_the_paper_beside(tmp_path: Path) -> None:
    published = read_records(Path(__file__).parents[2] / "results" / "published_wt103.jsonl")
    paths = build_report(
        [*methods(), *published], tmp_path, title="Results", page="RESULTS", figures_folder="pictures", html=False
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["RESULTS.md", "pictures"]
    text = Path(paths["markdown"]).read_text(encoding="utf-8")
    assert "rope: the paper +1.373 nats from 512 to 15,512 tokens; here +0.550" in text
    assert "alibi: the paper \N{MINUS SIGN}0.075" in text and "the same direction" in text
    assert "emma" in text and all(Path(path).stat().st_size > 10_000 for path in paths["figures"])
    assert all(f"(pictures/{Path(path).name})" in text for path in paths["figures"])


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
    assert methods_part is not None and methods_part.variants == ["alibi", "rope"]
    assert betas_part is not None and betas_part.variants == ["alibi", "beta 2", "beta 4", "learned"]
    paths = build_report(mixed(), tmp_path, title="T")
    text = Path(paths["markdown"]).read_text(encoding="utf-8")
    assert "| rope | sliding" in text and "| rope, yarn | sliding" in text and "| learned | sliding" in text
    names = [Path(path).name for path in paths["figures"]]
    assert names == ["test_training.png", "test.png", "test_positions.png", "test_rope_scaling.png", "test_beta.png"]


def test_a_reference_of_another_method_is_no_beta() -> None:
    variants = {"rope": {"position_method": "rope"}, "alibi": {}, "beta 2": {"alibi_beta": 2.0}}
    methods_part, betas_part = grid_of(comparison(variants)).split()
    assert methods_part is not None and (methods_part.reference, methods_part.alibi) == ("rope", "alibi")
    assert betas_part is not None and betas_part.reference == "alibi"
    assert list(beta_curve(betas_part, "geometric", "sliding", 128)) == [1.0, 2.0]
    assert [finding for finding in beta_findings(betas_part) if "rope" in finding] == []


def test_a_comparison_without_sliding_windows_is_read_by_those_it_has() -> None:
    records = [record for record in mixed() if record.get("protocol") != "sliding"]
    assert len(titles_of(records, claims=True)) == 6


def test_a_sweep_of_geometric_slopes_alone_says_nothing_of_others() -> None:
    records = comparison({"geometric 1": {}, "geometric 2": {"alibi_beta": 2.0}})
    assert [record["kind"] for record in records].count("training") == 4
    assert titles_of(records) == ["Test", "Perplexity against \N{GREEK SMALL LETTER BETA}, test"]
    assert len(beta_findings(grid_of(records))) == 3
    table = beta_comparison_table(grid_of(records), "sliding")
    assert [cell.split(",")[0] for cell in table.header[1:]] == ["geometric", "geometric"]
