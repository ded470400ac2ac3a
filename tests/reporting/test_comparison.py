"""Pages of comparisons: what the tables and the findings say is what the records hold."""

import math
from pathlib import Path
from typing import Any

import pytest

from modeling_alibi_gpt.evaluation.paired import comparison_records
from modeling_alibi_gpt.reporting.comparison import beta_comparison_table, comparison_sections, differences_table
from modeling_alibi_gpt.reporting.findings import (
    beta_curve,
    beta_findings,
    extrapolation_findings,
    learned_bias_findings,
    scaling_findings,
)
from modeling_alibi_gpt.reporting.grid import Grid, format_change, sign
from modeling_alibi_gpt.reporting.records import check_record, read_records
from modeling_alibi_gpt.reporting.report import build_report
from modeling_alibi_gpt.reporting.tables import group_by
from tests.example_records import PROVENANCE, extrapolation_record, training_record


LENGTHS = (128, 1024)
# Nats above 4 at the training length, and what each doubling of the length adds.
METHODS = {"alibi": (0.0, 0.0), "rope": (-0.05, 0.2), "none": (0.3, 0.001)}


def rows_of(variant: str, seed: int, **fields: Any) -> list[dict[str, Any]]:
    method = fields.get("position_method", "alibi")
    start, growth = METHODS[method]
    labels = {"variant": variant, "name": variant, "reading": "as trained", "seed": seed, "fields": fields}
    rows = []
    for protocol in ("nonoverlapping", "sliding"):
        for length in LENGTHS:
            early = 0.05 if (protocol, length) == ("nonoverlapping", 128) else 0.0
            optimum = math.log2(fields.get("alibi_beta", 1.0)) - 1
            nats = 4 + start + growth * math.log2(length / 128) + early + 0.01 * seed + 0.03 * optimum**2
            record = extrapolation_record("alibi", protocol, length) | labels
            record |= {"comparison": "test", "position_method": method, "overrides": {}}
            rows.append(record | {"nats_per_token": nats, "perplexity": math.exp(nats)})
    return rows


def comparison(variants: dict[str, dict[str, Any]], extra: list[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    records = [
        {"kind": "corpus", "comparison": "test", "source": "text:x", "num_documents": 1, "num_bytes": 9}
        | {"fingerprint": "0", "documents": ["a/emma.txt.gz"], "provenance": PROVENANCE}
    ]
    for seed in (0, 1):
        for variant, fields in variants.items():
            records.append(
                training_record("alibi", seed) | {"comparison": "test", "variant": variant, "fields": fields}
            )
            records += rows_of(variant, seed, **fields)
    records += extra
    records += comparison_records(records, reference=next(iter(variants)))
    for record in records:
        check_record(record)
    return records


@pytest.fixture
def methods() -> list[dict[str, Any]]:
    scaled = []
    for seed in (0, 1):
        for row in rows_of("rope", seed, position_method="rope"):
            nats = row["nats_per_token"] - (0.3 if row["length_tokens"] > 128 else -0.1)
            label = {
                "reading": "ntk",
                "name": "rope, ntk",
                "overrides": {"rope_extension": {"type": "ntk", "factor": 8}},
            }
            scaled.append(row | label | {"nats_per_token": nats, "perplexity": math.exp(nats)})
    return comparison({"alibi": {}, "rope": {"position_method": "rope"}, "none": {"position_method": "none"}}, scaled)


def grid_of(records: list[dict[str, Any]]) -> Grid:
    return Grid([record for record in records if record["kind"] == "comparison"])


def test_a_difference_counts_where_seeds_agree_beyond_the_noise() -> None:
    assert sign([0.03, 0.05]) == 1 and sign([-0.03, -0.05]) == -1
    assert sign([0.01, 0.02]) == 0 and sign([-0.01, 0.11]) == 0 and sign([0.0, 0.0]) == 0
    assert format_change([0.03, 0.05]) == "+0.040 (+0.030, +0.050)"
    assert format_change([-0.5]) == "\N{MINUS SIGN}0.500" and format_change(None) == "\N{EN DASH}"


def test_findings_sort_the_methods(methods: list[dict[str, Any]]) -> None:
    alone, early, whole, sliding, near, far = extrapolation_findings(grid_of(methods))
    assert alone.startswith("alibi from 128 to 1,024 tokens") and "sliding +0.000" in alone
    assert "lower with non-overlapping windows and no different with sliding ones" in early
    assert "lower: alibi" in whole and "higher: rope +0.550" in whole
    assert "no different: alibi +0.000 (+0.000, +0.000), none" in sliding and "higher: rope +0.600" in sliding
    assert "lower: rope" in near and "higher: none +0.300" in near
    assert "higher: rope +0.550" in far and "none" in far


def test_findings_on_scaling_compare_with_the_same_model(methods: list[dict[str, Any]]) -> None:
    (finding,) = scaling_findings(grid_of(methods))
    assert finding.startswith("rope at 1,024 tokens")
    assert "lower: ntk \N{MINUS SIGN}0.300 (\N{MINUS SIGN}0.300, \N{MINUS SIGN}0.300)" in finding


def test_differences_stand_with_their_spread(methods: list[dict[str, Any]]) -> None:
    grid = grid_of(methods)
    table = differences_table(grid, grid.as_trained)
    assert [row[0] for row in table.rows] == ["none", "none", "rope", "rope"]
    assert table.rows[2][2] == "\N{MINUS SIGN}0.050 \N{PLUS-MINUS SIGN} 0.000"


def test_the_best_beta_is_found_for_each_kind_of_slopes() -> None:
    betas = (0.5, 1.0, 2.0, 4.0)
    geometric = {f"geometric {beta:g}": {"alibi_beta": beta} for beta in betas}
    uniform = {f"uniform {beta:g}": {"alibi_slope_kind": "uniform", "alibi_beta": beta} for beta in betas}
    grid = grid_of(comparison({"geometric 1": {}} | geometric | uniform))
    assert list(beta_curve(grid, "uniform", "sliding", 128)) == list(betas)
    first, *_ = beta_findings(grid)
    assert "best \N{GREEK SMALL LETTER BETA} 2" in first and "costs +0.030 (+0.030, +0.030)" in first
    assert "no different from it: 2." in first
    assert any("does not move" in finding for finding in beta_findings(grid))
    stars = [row[0] for row in beta_comparison_table(grid, "sliding").rows if row[1].endswith("*")]
    assert stars == ["2"]


def test_a_learned_bias_is_said_to_have_moved_within_the_training_length() -> None:
    record = {"variant": "t5", "distances_tokens": [0, 1, 128], "train_context_length": 128}
    moved = record | {"bias_before": [[[0.0, 0.5, 0.0]]], "bias_after": [[[1.0, 0.25, 9.0]]]}
    assert learned_bias_findings([moved]) == ["t5: no bias moved further than 1.25 nats."]


def test_a_page_is_built_with_the_paper_beside(methods: list[dict[str, Any]], tmp_path: Path) -> None:
    published = read_records(Path(__file__).parents[2] / "results" / "published_wt103.jsonl")
    paths = build_report(
        [*methods, *published], tmp_path, title="Results", page="RESULTS", figures_folder="pictures", html=False
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["RESULTS.md", "pictures"]
    text = Path(paths["markdown"]).read_text(encoding="utf-8")
    assert "rope, non-overlapping: the paper +1.373 nats from 512 to 15,512 tokens, here +0.550" in text
    assert "alibi, non-overlapping: the paper \N{MINUS SIGN}0.075" in text and "the same direction" in text
    assert "emma" in text and all(Path(path).stat().st_size > 10_000 for path in paths["figures"])
    assert all(f"(pictures/{Path(path).name})" in text for path in paths["figures"])


def test_comparisons_keep_out_of_other_sections(methods: list[dict[str, Any]]) -> None:
    titles = [section.title for section in comparison_sections(group_by(methods, lambda record: record["kind"]))]
    assert titles == ["Test", "Length extrapolation, test", "Loss by position, test", "Scaling at inference, test"]
