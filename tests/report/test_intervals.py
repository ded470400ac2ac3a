"""Intervals over seeds and blocks of text: quantiles from tables, and coverage on data whose mean is known."""

import math

import numpy as np
import pytest

from modeling_alibi_gpt.report.intervals import half_width, t_quantile


NUM_TRIALS = 1000
# Of Satterthwaite's degrees of freedom for three seeds: found by simulation where blocks vary a tenth as much.
LEAST_COVERAGE = 0.924


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (15, 2.131), (120, 1.980)]
)
def test_quantiles_are_those_of_printed_tables(freedom: int, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, abs=0.0006)


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize(
    ("of_seeds", "of_blocks", "of_both"), [(1, 0, 0), (0, 1, 0), (1, 1, 0.3), (1, 2, 1), (0, 0, 1)]
)
def test_the_interval_holds_the_mean_as_often_as_it_says(
    num_seeds: int, of_seeds: float, of_blocks: float, of_both: float
) -> None:
    """Less three standard errors of such a count. What is of both alone makes the interval wider."""
    generator = np.random.default_rng(0)
    num_held = 0
    for _ in range(NUM_TRIALS):
        table = of_seeds * generator.standard_normal((num_seeds, 1)) + of_blocks * generator.standard_normal((1, 16))
        table = table + of_both * generator.standard_normal((num_seeds, 16))
        num_held += abs(table.mean()) <= half_width(table)
    three_errors = 3 * math.sqrt(LEAST_COVERAGE * (1 - LEAST_COVERAGE) / NUM_TRIALS)
    assert num_held / NUM_TRIALS >= LEAST_COVERAGE - three_errors
    if not of_both:
        assert num_held / NUM_TRIALS <= 0.95 + three_errors


def test_one_block_leaves_the_spread_over_seeds() -> None:
    values = [[0.1], [0.2], [0.6]]
    assert half_width(values) == pytest.approx(4.303 * np.std(values, ddof=1) / math.sqrt(3), rel=1e-4)
    assert half_width([[0.2, 0.2], [0.2, 0.2], [0.2, 0.2]]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(3, 16), (5, 4), (2, 2)])
def test_the_error_is_that_of_drawing_seeds_and_blocks(shape: tuple[int, int]) -> None:
    """Within four standard errors of a standard deviation over that many draws."""
    generator = np.random.default_rng(1)
    values = generator.standard_normal(shape)
    num_draws = 40_000
    seeds, blocks = (generator.integers(size, size=(num_draws, size - 1)) for size in shape)
    drawn = values[seeds[:, :, None], blocks[:, None, :]].mean(axis=(1, 2)).std()
    of_seeds, of_blocks = (values.mean(axis=axis).var(ddof=1) / size for axis, size in ((1, shape[0]), (0, shape[1])))
    freedom = (of_seeds + of_blocks) ** 2 / (of_seeds**2 / (shape[0] - 1) + of_blocks**2 / (shape[1] - 1))
    assert half_width(values) / t_quantile(freedom) == pytest.approx(drawn, rel=4 / math.sqrt(2 * num_draws))
