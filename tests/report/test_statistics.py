"""The rules by which differences count, on numbers whose verdict is known."""

import math
from typing import Any

import pytest

from modeling_alibi_gpt.report.beta_choice import describe_choice
from modeling_alibi_gpt.report.statistics import (
    Verdict,
    between_trainings,
    block_differences,
    choose_trial,
    judge,
    within_a_model,
)
from tests.support.example_records import beta_record


def test_trainings_differ_beyond_the_floor_and_beyond_their_spread() -> None:
    assert between_trainings([0.03, 0.05]).sign == 1 and between_trainings([-0.03, -0.05]).sign == -1
    assert between_trainings([0.01, 0.02]).sign == 0 and between_trainings([0.0, 0.0]).sign == 0
    assert between_trainings([-0.01, 0.11]).sign == 0
    assert between_trainings([0.01, 0.09]).sign == 0  # 0.05 with a standard error of 0.04
    assert between_trainings([0.021, 0.021]).sign == 1 and between_trainings([0.019, 0.019]).sign == 0
    assert between_trainings([0.121]).sign == 1 and between_trainings([0.119]).sign == 0


def test_one_model_changes_beyond_two_standard_errors_of_the_blocks() -> None:
    even, uneven = [[0.01, 0.01, 0.01, 0.01]], [[0.03, -0.01, 0.03, -0.01]]
    assert within_a_model([0.01], even).sign == 1
    assert within_a_model([0.01], uneven).sign == 0  # the standard error is 0.02 / sqrt(3)
    assert within_a_model([0.01], uneven).noise == pytest.approx(2 * 0.02 / math.sqrt(3))
    assert within_a_model([0.006]).sign == 1 and within_a_model([0.005]).sign == 0  # two errors of 0.002 and 15 %
    assert within_a_model([0.5]).noise == pytest.approx(2 * (0.002 + 0.15 * 0.5))
    assert within_a_model([0.03, -0.01], even).sign == 0, "seeds disagree"
    assert within_a_model([0.001], [[0.001]]) == within_a_model([0.001]), "one block has no spread"
    by_seed = [[0.02, 0.0, 0.04, -0.02], [0.04, -0.02, 0.02, 0.0]]  # their mean in each block is that of uneven
    assert within_a_model([0.01, 0.01], by_seed) == within_a_model([0.01, 0.01], uneven)


def test_the_blocks_of_one_reading_stand_against_those_of_another() -> None:
    assert block_differences([[4.0, 5.0], [4.5, 5.5]], [[3.0, 5.5], [4.0, 5.0]]) == [[1.0, -0.5], [0.5, 0.5]]
    assert block_differences(None, [[1.0]]) is None and block_differences([[1.0]], None) is None
    with pytest.raises(ValueError, match="shorter|longer"):
        block_differences([[4.0, 5.0]], [[4.0]])


def test_level_is_shown_and_not_only_undetected() -> None:
    even = [[0.0, 0.0]]
    assert within_a_model([0.001]).is_level
    assert within_a_model([-0.3]).is_level, "a fall is no rise"
    assert within_a_model([0.009], even).is_level, "a rise of less than 0.01 nats, even if it is detected"
    assert not within_a_model([0.007]).is_level
    assert not within_a_model([0.0], [[0.2, -0.2]]).is_level, "too noisy to tell"
    assert not between_trainings([0.0, 0.0]).is_level


def test_a_rise_is_shown_only_if_it_exceeds_what_counts_as_level() -> None:
    even = [[0.0, 0.0]]
    assert [within_a_model([nats], even).rise for nats in (-0.3, 0.009, 0.011)] == [-1, -1, 1]
    assert within_a_model([0.012]).rise == 0, "0.002 nats above, with a noise of 0.0076"
    assert within_a_model([0.03, 0.009], even).rise == 0, "one of the seeds stays level"
    assert (
        within_a_model([-0.02], even).sign_above(-0.01) == -1 and within_a_model([-0.009], even).sign_above(-0.01) == 1
    )


def test_three_seeds_are_judged_by_their_interval() -> None:
    """That of (0.04, 0.05, 0.06) is 0.05 with a standard error of 0.01 / sqrt(3) and t = 4.303 for two degrees."""
    difference = between_trainings([0.04, 0.05, 0.06])
    assert difference.half_width == pytest.approx(4.303 * 0.01 / math.sqrt(3), rel=1e-4)
    assert difference.noise == difference.half_width and difference.sign == difference.shown == 1
    assert between_trainings([0.02, 0.05, 0.08]).sign == 0
    assert between_trainings([0.0189, 0.019, 0.0191]).noise == 0.02, "the floor stays"
    even, uneven = [[each] * 16 for each in (0.04, 0.05, 0.06)], [[0.3, -0.2] * 8] * 3
    assert between_trainings([0.04, 0.05, 0.06], even) == difference
    assert between_trainings([0.05, 0.05, 0.05], uneven).sign == 0, "another text could turn it"
    assert within_a_model([0.04, 0.05, 0.06], even).noise == difference.noise


def test_means_over_seeds_do_not_hide_how_the_seeds_differ() -> None:
    by_seed, means = [-0.15, -0.02, -0.01], [[-0.06] * 15 + [-0.061]]
    assert between_trainings(by_seed, means) == between_trainings(by_seed)
    assert between_trainings(by_seed, means).sign == 0


def test_fewer_than_three_seeds_detect_but_prove_nothing() -> None:
    assert between_trainings([0.5, 0.5]).sign == 1 and between_trainings([0.5, 0.5]).shown == 0
    assert between_trainings([0.5]).sign == 1 and between_trainings([0.5]).shown == 0
    assert within_a_model([0.5]).shown == 1


@pytest.mark.parametrize(
    ("signs", "each", "any_"),
    [
        ([1, 1], Verdict.HOLDS, Verdict.HOLDS),
        ([1, 0], Verdict.NOT_SHOWN, Verdict.HOLDS),
        ([0, 0], Verdict.NOT_SHOWN, Verdict.NOT_SHOWN),
        ([1, -1], Verdict.DOES_NOT_HOLD, Verdict.HOLDS),
        ([0, -1], Verdict.DOES_NOT_HOLD, Verdict.NOT_SHOWN),
        ([-1, -1], Verdict.DOES_NOT_HOLD, Verdict.DOES_NOT_HOLD),
        ([], Verdict.NOT_SHOWN, Verdict.NOT_SHOWN),
    ],
)
def test_what_is_undetected_is_not_shown(signs: list[int], each: Verdict, any_: Verdict) -> None:
    assert judge(signs, 1) is each and judge([-sign for sign in signs], -1) is each
    assert judge(signs, 1, each=False) is any_ and judge([-sign for sign in signs], -1, each=False) is any_


def trial(beta: float, *by_seed: float, mode: str = "retrain", **fields: Any) -> dict[str, Any]:
    nats = sum(by_seed) / len(by_seed)
    record = beta_record(mode, 0, beta) | {"seeds": list(range(len(by_seed))) if mode == "retrain" else []}
    numbers = {"nats_per_token": nats, "nats_per_token_by_seed": list(by_seed), "perplexity": math.exp(nats)}
    return record | numbers | fields


def chosen(*trials: dict[str, Any]) -> tuple[float, float, tuple[float, ...]]:
    found = choose_trial(trials)
    assert found is not None and found[0]["beta"] == found[1].taken
    return found[1].taken, found[1].lowest, found[1].level


def test_of_betas_that_are_not_told_apart_the_nearest_to_1_is_taken() -> None:
    curve = [trial(1, 5.80, 5.79), trial(8, 5.62, 5.58), trial(16, 5.61, 5.60), trial(64, 5.63, 5.55)]
    assert chosen(*curve) == (8, 64, (8, 16, 64))
    assert chosen(trial(0.25, 5.0), trial(2, 5.01), trial(8, 5.2)) == (2, 0.25, (0.25, 2))
    assert chosen(trial(0.5, 5.01), trial(2, 5.0)) == (2, 2, (0.5, 2)), "as near: the lower loss"
    assert chosen(trial(0.5, 5.0), trial(2, 5.01)) == (0.5, 0.5, (0.5, 2))
    assert chosen(trial(1, 5.2), trial(2, 5.0)) == (2, 2, (2,))
    pruned = trial(1, 5.0) | {"state": "PRUNED", "nats_per_token": None}
    assert chosen(pruned, trial(4, 5.0), trial(8, 4.99)) == (4, 8, (4, 8))
    assert choose_trial([pruned]) is None


def test_seeds_that_only_some_trials_have_do_not_count() -> None:
    assert chosen(trial(1, 5.00, 7.0), trial(4, 4.99)) == (1, 4, (1, 4))


def test_one_checkpoint_at_several_betas_is_judged_by_blocks() -> None:
    lowest = trial(2, 5.0, mode="posthoc", nats_per_token_by_block=[4.0, 6.0])
    sure = trial(1, 5.01, mode="posthoc", nats_per_token_by_block=[4.01, 6.01])
    unsure = trial(1, 5.01, mode="posthoc", nats_per_token_by_block=[4.03, 5.99])
    assert chosen(sure, lowest) == (2, 2, (2,)) and chosen(unsure, lowest) == (1, 2, (1, 2))
    assert chosen(trial(1, 5.003, mode="posthoc"), trial(2, 5.0, mode="posthoc")) == (1, 2, (1, 2))
    assert chosen(trial(1, 5.006, mode="posthoc"), trial(2, 5.0, mode="posthoc")) == (2, 2, (2,))


def test_words_say_what_cannot_be_told_apart_and_by_what_rule() -> None:
    words = describe_choice([trial(1, 5.80), trial(8, 5.61), trial(64, 5.60)])
    assert words == (
        f"The lowest mean perplexity is {math.exp(5.6):.2f} at \u03b2 64. Not told apart (beyond 0.12 nats, because "
        f"one seed has no spread): \u03b2 8, 64. Of these, 8 is chosen, the nearest to 1, with perplexity "
        f"{math.exp(5.61):.2f}."
    )
    assert "two standard errors over seeds" in describe_choice([trial(1, 5.8, 5.7), trial(8, 5.6, 5.5)])
    three = describe_choice([trial(1, 5.8, 5.7, 5.9), trial(8, 5.6, 5.5, 5.7)])
    assert "beyond 0.02 nats and half of the 95 % interval over seeds" in three
    lowest = trial(1, 5.0, mode="posthoc", nats_per_token_by_block=[4.0, 6.0])
    worse = trial(2, 5.01, mode="posthoc", nats_per_token_by_block=[4.01, 6.01])
    told_apart = describe_choice([lowest, worse])
    assert told_apart.endswith("(beyond two standard errors over blocks of the text); \u03b2 1 is chosen.")
    unknown = describe_choice([trial(1, 5.0, mode="posthoc"), trial(2, 6.0, mode="posthoc")])
    assert "which are unknown and assumed to be 0.002 nats and 15 % of the difference each" in unknown


def test_a_lone_beta_is_not_said_to_be_told_apart_from_others() -> None:
    pruned = trial(2, 5.0) | {"state": "PRUNED", "nats_per_token": None}
    words = describe_choice([trial(1, 5.0), pruned])
    assert words.endswith(f"{math.exp(5.0):.2f} at \u03b2 1. No other \u03b2 is complete, so nothing is compared.")
