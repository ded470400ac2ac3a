"""Beta against the budget of training: fits, intervals and predictions of losses that follow a formula."""

from pathlib import Path

import numpy as np
import pytest

from modeling_alibi_gpt.report import beta_budgets
from modeling_alibi_gpt.report.beta_budgets import Best, Budget, best_of, fit_minimum, predict, predict_budget
from modeling_alibi_gpt.report.report import build_report
from tests.support.budget_cases import BETAS, TOKENS, budget_records, nats


def budget(tokens: int, spread: float = 0.0, num_seeds: int = 2, num_blocks: int = 8) -> Budget:
    noise = np.random.default_rng(tokens).normal(0, spread, (len(BETAS), num_seeds, num_blocks))
    return Budget(tokens, BETAS, nats(tokens)[:, None, None] + noise)


def test_the_minimum_of_a_parabola_is_found_between_the_betas() -> None:
    for tokens, expected in zip(TOKENS, (4, 3.5, 3, 2.5, 2), strict=True):
        log_beta, lowest, is_inside = fit_minimum(BETAS, nats(tokens))
        assert (log_beta, lowest) == pytest.approx((expected, 4.0), abs=1e-9) and is_inside


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3, 2, 1], (2.0, 1.0, False)),
        ([1, 2, 3], (0.0, 1.0, False)),
        ([2, 1, 2], (1.0, 1.0, True)),
        ([2, 1, 4], (1 - 0.25, 1 - 0.125, True)),
    ],
)
def test_a_minimum_at_the_end_is_no_minimum(losses: list[float], expected: tuple[float, float, bool]) -> None:
    assert fit_minimum([1, 2, 4], losses) == pytest.approx(expected)


def measured(curve: np.ndarray, number: int) -> Best:
    """The best beta of two seeds, whose noise has a standard deviation of 0.02 nats, and what it is worth."""
    draws = np.random.default_rng(1000 + number)
    noise = draws.normal(0, 0.02, (len(BETAS), 2, 1)) + draws.normal(0, 0.1, (1, 2, 4))
    return best_of(Budget(TOKENS[0], BETAS, curve[:, None, None] + noise))


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 experiments, 95 on average; fewer than 89 would be three standard deviations off.

    Nor are they much wider than the spread of what 100 experiments find.
    """
    monkeypatch.setattr(beta_budgets, "NUM_RESAMPLES", 300)
    found = [measured(nats(TOKENS[0]), number) for number in range(100)]
    for name, truth in (("beta", 16), ("worth", 0.05 * 16)):
        estimates = [getattr(best, name) for best in found]
        assert sum(low <= truth <= high for low, high in (estimate.ends for estimate in estimates)) >= 89, name
        width = np.mean([np.log(estimate.ends[1] / estimate.ends[0]) for estimate in estimates])
        assert width <= 1.4 * 2 * 1.96 * np.std([np.log(estimate.value) for estimate in estimates]), name


def test_the_lowest_of_equal_losses_is_no_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowest of eight losses is lower than one of them by chance. Its interval is above 0 in 2.5 of 100
    experiments on average; more than 7 would be three standard deviations off.
    """
    monkeypatch.setattr(beta_budgets, "NUM_RESAMPLES", 300)
    found = [measured(np.full(len(BETAS), 4.0), number).worth for number in range(100)]
    assert np.mean([worth.value for worth in found]) > 0.01
    assert sum(worth.ends[0] > 0 for worth in found) <= 7


def test_noise_that_all_betas_share_says_nothing_of_the_best() -> None:
    shared = np.random.default_rng(0).normal(0, 1, (1, 2, 8))
    best = best_of(Budget(TOKENS[0], BETAS, nats(TOKENS[0])[:, None, None] + shared))
    assert best.beta.ends == pytest.approx((16, 16)) and best.worth.ends == pytest.approx((0.8, 0.8))


def test_a_power_law_goes_on() -> None:
    prediction = predict([budget(tokens) for tokens in TOKENS[:4]], TOKENS[4])
    assert prediction is not None
    assert prediction.beta.value == pytest.approx(4.0) and prediction.beta.ends == pytest.approx((4.0, 4.0))
    logs = np.log2([0.05 * (4 - 0.5 * n) ** 2 for n in range(4)])
    expected = 2 ** np.polynomial.Polynomial.fit(range(4), logs, 1)(4)
    assert prediction.worth.value == pytest.approx(expected)
    noisy = predict([budget(tokens, spread=0.02) for tokens in TOKENS[:4]], TOKENS[4])
    assert noisy is not None and noisy.beta.ends[0] < noisy.beta.value < noisy.beta.ends[1]


def test_nothing_is_predicted_from_budgets_whose_best_beta_was_not_reached() -> None:
    steep = [Budget(tokens, BETAS[:4], budget(tokens).nats[:4]) for tokens in TOKENS[:4]]  # betas up to 4
    assert [each.is_bracketed for each in steep] == [False] * 4
    assert predict(steep, TOKENS[4]) is None
    assert predict([budget(tokens) for tokens in TOKENS[:2]], TOKENS[4]) is None


def test_the_report_shows_what_was_found_and_what_was_predicted(tmp_path: Path) -> None:
    prediction = predict_budget(budget_records(4), TOKENS[4])
    assert prediction is not None
    paths = build_report([*budget_records(5), prediction], tmp_path, title="t")
    page = Path(paths["markdown"]).read_text(encoding="utf-8")
    assert page.count("\n## ") == 3, "the conclusion, one section for all budgets, and provenance"
    assert f"| betas | {TOKENS[0]:,} | 16 (16 to 16) | 0.800 (0.800 to 0.800) |" in page
    assert (
        "the best β is 16 after 524,288 tokens and 4 after 8,388,608; tuning is worth 0.800 nats, then 0.200." in page
    )
    assert "Doubling the tokens changes the best β by a factor of 0.71" in page
    assert "The 95 % intervals of the factors are 0.71 to 0.71 and 0.71 to 0.71." in page
    told = prediction["worth_nats"]
    assert f"| betas | {TOKENS[4]:,} | 4 (4 to 4) | 4 (4 to 4) | {told:.3f} ({told:.3f} to {told:.3f}) | 0.200" in page
    assert prediction["provenance"]["time_utc"] in page and prediction["provenance"]["git_commit"][:12] in page
    assert [Path(figure).name for figure in paths["figures"]] == ["beta_budgets.png"]
    with pytest.raises(ValueError, match="cannot be predicted: one of 8,388,608 was already evaluated"):
        predict_budget(budget_records(5), TOKENS[4])


def test_a_budget_with_other_methods_has_its_own_sections_too(tmp_path: Path) -> None:
    records = budget_records(3)
    rope = {"variant": "rope", "name": "rope", "position_method": "rope", "fields": {"position_method": "rope"}}
    others = [
        record | rope | ({"varies": "method"} if record["kind"] == "comparison" else {})
        for record in records
        if record.get("variant") == "beta 1" and record["budget_tokens"] == TOKENS[2]
    ]
    paths = build_report([*records, *others], tmp_path, title="t")
    page = Path(paths["markdown"]).read_text(encoding="utf-8")
    assert "| rope | " in page and f"betas, {TOKENS[2]:,} tokens" in page
    assert f"betas, {TOKENS[1]:,} tokens" not in page
