"""Claims hold where the records say so, and nowhere else."""

from modeling_alibi_gpt.evaluation.paired import comparison_records
from modeling_alibi_gpt.reporting.claims import claims_section
from modeling_alibi_gpt.reporting.grid import Grid
from tests.comparison_cases import beta_sweep, comparison, grid_of, methods, read_otherwise, rows_of
from tests.example_records import training_record


def verdicts(*grids: Grid) -> dict[str, tuple[str, str]]:
    (section,) = claims_section(grids, [training_record("alibi")])
    return {claim: (verdict, measured) for claim, verdict, measured in section.tables[0].rows}


def verdict(claim: str, *grids: Grid) -> tuple[str, str]:
    (found,) = (value for name, value in verdicts(*grids).items() if claim in name)
    return found


def test_methods_are_judged_by_sliding_windows() -> None:
    grid = grid_of(methods())
    assert verdict("far longer text no worse", grid) == ("holds", "test: +0.000 from 128 to 1,024 tokens")
    assert (
        verdict("text beyond the training length", grid)[0] == "does not hold"
    )  # although windows that do not overlap gain 0.05
    assert verdict("Where all were trained", grid) == (
        "does not hold",
        "test: rope \N{MINUS SIGN}0.050 against it at 128 tokens",
    )
    assert verdict("read far longer text worse", grid)[0] == "holds"
    assert verdict("No other method", grid)[0] == "holds"
    assert verdict("alone stays level", grid) == ("does not hold", "test: none +0.003 from 128 to 1,024 tokens")
    held, measured = verdict("RoPE read", grid)
    assert held == "does not hold"
    assert "at best ntk +0.300 at 1,024 tokens, where RoPE as trained stands +0.600" in measured


def test_a_reading_of_alibi_that_helps_is_found() -> None:
    assert not any("Slopes made flatter" in claim for claim in verdicts(grid_of(methods())))
    for nats, expected in ((-0.05, "holds"), (0.05, "does not hold"), (-0.01, "does not hold")):
        read = [read_otherwise(rows_of("alibi", seed), "ntk 8", nats, alibi_scaling={}) for seed in (0, 1)]
        grid = grid_of(comparison({"alibi": {}, "none": {"position_method": "none"}}, read[0] + read[1]))
        assert verdict("Slopes made flatter", grid)[0] == expected


def test_betas_are_judged_at_every_length() -> None:
    grid = grid_of(beta_sweep())
    held, measured = verdict("is better to train with", grid)
    assert held == "holds" and "\N{GREEK SMALL LETTER BETA} 2 at 128 tokens \N{MINUS SIGN}0.030" in measured
    assert verdict("where longer text is read", grid)[0] == "not shown"
    assert verdict("Slopes that differ by head", grid)[0] == "not shown"
    assert verdict("each layer learns", grid)[0] == "does not hold"
    assert verdict("reads better with another", grid)[0] == "does not hold"
    assert not any("ALiBi reads" in claim for claim in verdicts(grid))


def test_the_best_beta_moves_where_the_best_of_one_length_is_worse_at_another() -> None:
    records = beta_sweep()
    for record in records:
        far = record["kind"] == "extrapolation" and record["length_tokens"] == 1024
        if far and record["fields"] == {"alibi_beta": 0.5}:
            record["nats_per_token"] -= 0.5
    rows = [record for record in records if record["kind"] != "comparison"]
    held, measured = verdict("where longer text is read", grid_of(comparison_records(rows, reference="geometric 1")))
    assert held == "holds" and "1/2 (the smallest tried) at 1,024 tokens" in measured


def test_corpora_that_disagree_are_named() -> None:
    one = grid_of(methods())
    records = [record | {"comparison": "test on Mars"} for record in methods()]
    for record in records:
        if record["kind"] == "extrapolation" and record["variant"] == "alibi" and record["length_tokens"] == 1024:
            record["nats_per_token"] += 0.2
    rows = [record for record in records if record["kind"] != "comparison"]
    other = grid_of(comparison_records(rows, reference="alibi"))
    held, measured = verdict("far longer text no worse", one, other)
    assert held == "holds on test; does not hold on Mars" and measured.endswith(
        "Mars: +0.200 from 128 to 1,024 tokens"
    )
