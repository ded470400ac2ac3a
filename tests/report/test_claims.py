"""Claims hold where the records say so, do not where they say otherwise, and are not shown where they say nothing."""

from typing import Any

import pytest

from modeling_alibi_gpt.experiments.paired import comparison_records
from modeling_alibi_gpt.report.comparison import Comparison
from modeling_alibi_gpt.report.comparison_sections import claims_section
from modeling_alibi_gpt.report.frames import frames
from modeling_alibi_gpt.report.statistics import Verdict
from modeling_alibi_gpt.report.verdicts import BETA_CLAIMS, METHOD_CLAIMS
from tests.support import comparison_cases
from tests.support.comparison_cases import (
    SEEDS,
    beta_sweep,
    comparison,
    grid_of,
    methods,
    mixed,
    read_otherwise,
    rows_of,
)
from tests.support.example_records import extrapolation_record, training_record


# 819,200 tokens for 2,171,712 parameters.
BASIS = " (0.38 tokens per parameter, 3 seeds, 65,536 tokens read)"


def verdicts(*grids: Comparison) -> dict[str, tuple[str, str]]:
    """By claim; what each verdict rests on is checked and left out."""
    trainings = [training_record("alibi") | {"comparison": grid.name} for grid in grids]
    rows = [extrapolation_record("alibi", "sliding", 128) | {"comparison": grid.name} for grid in grids]
    (section,) = claims_section(grids, frames([*trainings, *rows]))
    found = {}
    for claim, verdict, measured in section.tables[0].rows:
        assert 1 <= measured.count(BASIS) <= len(grids)
        found[claim] = (verdict, measured.replace(BASIS, ""))
    return found


def verdict(claim: str, *grids: Comparison) -> tuple[str, str]:
    (found,) = (value for name, value in verdicts(*grids).items() if claim in name)
    return found


def test_methods_are_judged_by_sliding_windows() -> None:
    grid = grid_of(methods())
    assert verdict("no worse on far longer text", grid) == ("holds", "test: +0.000 from 128 to 1,024 tokens")
    assert verdict("At the training length it is no worse than RoPE", grid) == (
        "does not hold",
        "test: rope \N{MINUS SIGN}0.050 against it at 128 tokens",
    )
    assert verdict("RoPE does worse on far longer text", grid)[0] == "holds"
    assert verdict("none is better", grid)[0] == "holds"
    assert verdict("only ALiBi stays level", grid) == (
        "does not hold",
        "test: +0.000, lowest of the others none +0.003, rope +0.600 from 128 to 1,024 tokens",
    )
    held, measured = verdict("NTK, without fine-tuning, keeps RoPE", grid)
    assert held == "does not hold"
    assert "at best ntk +0.300 at 1,024 tokens, where RoPE as trained changes by +0.600" in measured


def test_a_reading_of_alibi_that_helps_is_found() -> None:
    assert not any("Flatter slopes" in claim for claim in verdicts(grid_of(methods())))
    for nats, expected in ((-0.05, "holds"), (0.05, "does not hold"), (-0.003, "not shown"), (0.003, "not shown")):
        read = [read_otherwise(rows_of("alibi", seed), "ntk 8", nats, alibi_scaling={}) for seed in SEEDS]
        grid = grid_of(comparison({"alibi": {}, "none": {"position_method": "none"}}, sum(read, [])))
        assert verdict("Flatter slopes", grid)[0] == expected


def test_betas_are_judged_at_every_length() -> None:
    grid = grid_of(beta_sweep())
    held, measured = verdict("other than the paper's 1 is better", grid)
    assert held == "holds" and "\N{GREEK SMALL LETTER BETA} 2 at 128 tokens, \N{MINUS SIGN}0.030" in measured
    assert verdict("depends on the length of the text", grid)[0] == "not shown"
    assert verdict("Slopes that differ by head", grid)[0] == "not shown"
    assert verdict("each layer learns", grid)[0] == "does not hold"  # 0.03 worse
    assert verdict("other than its own", grid)[0] == "does not hold"
    assert not any("ALiBi reads" in claim for claim in verdicts(grid))


def test_the_best_beta_moves_where_the_best_of_one_length_is_worse_at_another() -> None:
    records = beta_sweep()
    for record in records:
        far = record["kind"] == "extrapolation" and record["length_tokens"] == 1024
        if far and record["fields"] == {"alibi_beta": 0.5}:
            record["nats_per_token"] -= 0.5
    rows = [record for record in records if record["kind"] != "comparison"]
    held, measured = verdict(
        "depends on the length of the text", grid_of(comparison_records(rows, reference="geometric 1"))
    )
    assert held == "holds" and "1/2 (1/2 is the smallest tried) at 1,024 tokens" in measured


def test_corpora_that_disagree_are_named() -> None:
    one = grid_of(methods())
    records = [record | {"comparison": "test on Mars"} for record in methods()]
    for record in records:
        if record["kind"] == "extrapolation" and record["variant"] == "alibi" and record["length_tokens"] == 1024:
            record["nats_per_token"] += 0.2
    rows = [record for record in records if record["kind"] != "comparison"]
    other = grid_of(comparison_records(rows, reference="alibi", corpus="Mars"))
    held, measured = verdict("no worse on far longer text", one, other)
    assert held == "holds (test); does not hold (Mars)"
    assert measured.endswith("Mars: +0.200 from 128 to 1,024 tokens")


def shifted(nats: float, variant: str, length: int = 1024, **variants: dict[str, Any]) -> Comparison:
    """A comparison of ``variants``, one of which is ``nats`` higher at one length."""
    records = comparison(variants)
    for record in records:
        if record["kind"] == "extrapolation" and (record["variant"], record["length_tokens"]) == (variant, length):
            record["nats_per_token"] += nats
    rows = [record for record in records if record["kind"] != "comparison"]
    return grid_of(comparison_records(rows, reference="alibi"))


def test_a_claim_names_only_the_methods_that_ran() -> None:
    found = verdicts(grid_of(methods()))
    assert not any(name in claim for claim in found for name in ("sinusoidal", "Sinusoidal", "T5", "YaRN"))
    assert "Of ALiBi, rope and none, only ALiBi stays level" in found
    without = verdicts(shifted(0, "alibi", alibi={}, t5={"position_method": "none"}))
    assert not any(words in claim for claim in without for words in ("no worse than", "does worse", "RoPE"))


def test_what_was_not_detected_is_not_shown() -> None:
    grid = shifted(-0.24, "none", 128, alibi={}, none={"position_method": "none"})  # 0.06 above, 0.015 by seed
    assert verdict("none is better", grid)[0] == "holds"
    level = shifted(-0.29, "none", 1024, alibi={}, none={"position_method": "none"})
    assert verdict("none is better", level)[0] == "not shown"
    assert verdict("only ALiBi stays level", level)[0] == "does not hold", "the other falls"
    rope = shifted(0.06, "rope", 128, alibi={}, rope={"position_method": "rope"})
    assert verdict("At the training length", rope)[0] == "not shown"


def test_changes_within_a_model_are_judged_by_the_blocks_of_its_text() -> None:
    """A rise of 0.018 nats is lost between training runs, and is none within one model; blocks can say otherwise."""
    variants: dict[str, Any] = {"alibi": {}, "none": {"position_method": "none"}}
    assert verdict("only ALiBi stays level", shifted(0.022, "none", **variants))[0] == "holds"
    assert verdict("only ALiBi stays level", shifted(0.005, "none", **variants))[0] == "not shown", "a rise of 0.008"
    assert verdict("no worse on far longer text", shifted(0.025, "alibi", **variants))[0] == "does not hold"
    assert verdict("no worse on far longer text", shifted(0.007, "alibi", **variants))[0] == "not shown"
    assert verdict("no worse on far longer text", shifted(0.003, "alibi", **variants))[0] == "holds"
    records = comparison(variants)
    for record in records:
        if record["kind"] == "extrapolation":
            far = 0.018 * (record["length_tokens"] == 1024)
            record["nats_per_token"] += far
            record["nats_per_token_by_block"] = [4 - far, 4 + 3 * far]
    rows = [record for record in records if record["kind"] != "comparison"]
    noisy = grid_of(comparison_records(rows, reference="alibi"))
    assert verdict("no worse on far longer text", noisy)[0] == "not shown"


@pytest.mark.parametrize(
    ("near", "far", "expected"),
    [(0.0, 0.0, "does not hold"), (0.03, 0.0, "does not hold"), (0.03, 0.03, "holds"), (0.0, 0.015, "not shown")],
)
def test_text_beyond_the_training_length_is_used_only_if_it_helps_windows_that_have_such_text(
    monkeypatch: pytest.MonkeyPatch, near: float, far: float, expected: str
) -> None:
    """With windows of 128 tokens, most contexts are shorter than the training length; a gain over them proves nothing.

    The loss falls by ``near`` from 128 to 256 tokens, and by ``far`` from 256 to 1,024.
    """
    monkeypatch.setattr(comparison_cases, "LENGTHS", (128, 256, 1024))
    records = comparison({"alibi": {}, "none": {"position_method": "none"}})
    for record in records:
        if (record["kind"], record.get("variant")) == ("extrapolation", "alibi"):
            record["nats_per_token"] -= near * (record["length_tokens"] > 128) + far * (record["length_tokens"] > 256)
    rows = [record for record in records if record["kind"] != "comparison"]
    found, measured = verdict("gains from text beyond", grid_of(comparison_records(rows, reference="alibi")))
    assert found == expected and measured.endswith(" from 256 to 1,024 tokens")


def test_windows_without_overlap_tell_nothing_of_longer_text() -> None:
    rows = [r for r in methods() if r["kind"] != "comparison" and r.get("protocol") != "sliding"]
    grid = grid_of(comparison_records(rows, reference="alibi"))
    assert not any("far longer text" in claim or "stays level" in claim for claim in verdicts(grid))
    assert any("far longer text" in claim for claim in verdicts(grid_of(methods())))


def test_two_seeds_prove_nothing_between_trainings() -> None:
    def of_two_seeds(records: list[dict[str, Any]]) -> Comparison:
        rows = [record for record in records if record["kind"] == "extrapolation" and record["seed"] < 2]
        return grid_of(comparison_records(rows, reference=next(iter(rows))["variant"]))

    grid = of_two_seeds(methods())
    found = {claim.__name__: verdict for claim in METHOD_CLAIMS for verdict, _ in claim(grid)}
    assert found.pop("reads_on") is Verdict.HOLDS and found.pop("rivals_fail") is Verdict.HOLDS
    assert found.pop("alone_stays_level") is found.pop("rope_is_extended") is Verdict.DOES_NOT_HOLD
    assert set(found.values()) == {Verdict.NOT_SHOWN} and len(found) == 2
    betas = of_two_seeds(beta_sweep())
    between = [claim for claim in BETA_CLAIMS if claim.__name__ != "another_beta_reads_better"]
    assert {verdict for claim in between for verdict, _ in claim(betas)} == {Verdict.NOT_SHOWN}


def test_position_parameters_at_the_base_rate_get_no_verdict() -> None:
    """Neither on T5's table nor on what was learned of beta, unless a rate of their own was chosen."""
    variants: dict[str, Any] = {"alibi": {}, "t5": {"position_method": "t5"}, "learned": {"alibi_trainable": "beta"}}
    variants |= {"rope": {"position_method": "rope"}, "beta 2": {"alibi_beta": 2.0}}
    slow = grid_of(comparison(variants))
    assert slow.withdrawn == ["t5", "learned"]
    assert not any("T5" in claim or "learns" in claim for claim in verdicts(slow))
    for name in slow.withdrawn:
        variants[name] |= {"position_learning_rate": 1}
    chosen = grid_of(comparison(variants))
    assert chosen.withdrawn == []
    found = verdicts(chosen)
    assert "At the training length it is no worse than RoPE and T5" in found
    assert (
        found["A \u03b2 that each layer learns is as good as the best fixed one that was tried"][0] == "does not hold"
    )


def test_learned_alibi_is_no_other_method() -> None:
    grid = grid_of(comparison({"alibi": {}, "learned": {"alibi_trainable": "beta"}}))
    assert not any(
        words in claim for claim in verdicts(grid) for words in ("none is better", "only ALiBi stays level")
    )


def test_a_comparison_of_betas_and_methods_is_judged_on_both() -> None:
    found = verdicts(grid_of(mixed()))
    assert {claim: verdict for claim, (verdict, _) in found.items()} == {
        "Trained on short text, ALiBi does no worse on far longer text (its paper, section 4)": "holds",
        "At the training length it is no worse than RoPE": "does not hold",
        "RoPE does worse on far longer text": "holds",
        "Of ALiBi and rope, only ALiBi stays level": "holds",
        "Of ALiBi and rope, none is better than ALiBi at the longest length": "holds",
        "YaRN, without fine-tuning, keeps RoPE no worse up to the length that it is set for": "does not hold",
        "Training with a \u03b2 other than the paper's 1 is better": "holds",
        "The best \u03b2 depends on the length of the text": "not shown",
        "A \u03b2 that each layer learns is as good as the best fixed one that was tried": "does not hold",
    }
    assert "lowest of the others rope +0.600" in found["Of ALiBi and rope, only ALiBi stays level"][1]


def at_lengths(lengths: dict[int, int], train_context_length: int = 128) -> Comparison:
    """The methods at these lengths, with the losses of the lengths that they map to."""
    cells = [record for record in methods() if record["kind"] == "comparison"]
    moved = {"train_context_length": train_context_length}
    return grid_of(
        [
            cell | moved | {"length_tokens": length}
            for length, source in lengths.items()
            for cell in cells
            if cell["length_tokens"] == source
        ]
    )


def test_claims_begin_at_the_training_length() -> None:
    grid = at_lengths({64: 1024, 128: 128, 1024: 1024})
    assert verdict("no worse on far longer text", grid) == ("holds", "test: +0.000 from 128 to 1,024 tokens")
    assert "at 128 tokens" in verdict("At the training length it is no worse", grid)[1]
    judged = verdicts(at_lengths({64: 128, 1024: 1024}), grid_of(beta_sweep()))
    assert judged and not any("longer text" in claim or "training length" in claim for claim in judged)


def test_one_length_says_nothing_of_longer_text() -> None:
    judged = verdicts(at_lengths({64: 128, 128: 128}))
    assert list(judged) == [claim for claim in judged if claim.startswith("At the training length")] and judged


def test_a_tuned_beta_of_the_experiment_is_no_sweep() -> None:
    tuned = {"alibi_beta": 8.0}
    grid = grid_of(comparison({"alibi": tuned, "learned": {**tuned, "alibi_trainable": "beta"}}))
    assert grid.split() == (grid, None)
