"""The findings about distant text and about training budgets in docs/results/tables.md, worked out anew."""

import math

import pytest

from tests.support.recomputation import BETA, lines_of
from tests.support.recomputed_budgets import TITLE, best_and_worth, digits, losses, straight_line
from tests.support.recomputed_context import CONTEXT, NUM_NAMES, check_context_finding


@pytest.mark.parametrize("folder", NUM_NAMES)
def test_the_findings_of_context(folder: str) -> None:
    findings = [line[2:] for line in lines_of(f"{CONTEXT}, {folder}") if line.startswith("- ")]
    assert len(findings) == NUM_NAMES[folder]
    for line in findings:
        check_context_finding(folder, line)


@pytest.mark.parametrize(("width", "num_budgets"), [(128, 5), (256, 5)])
def test_the_finding_of_the_budgets(width: int, num_budgets: int) -> None:
    name = f"beta by budget on Gutenberg, width {width}"
    (line,) = (line for line in lines_of(TITLE) if line.startswith(f"- {name} "))
    sizes = [512_000 * 2**number for number in range(num_budgets)]
    found = [best_and_worth(losses(name, size)) for size in sizes]
    (first_beta, first_worth), (last_beta, last_worth) = found[0], found[-1]
    assert f"the best {BETA} is {digits(first_beta)} after {sizes[0]:,} tokens and {digits(last_beta)} after" in line
    assert f"tuning is worth {first_worth:.3f} nats, then {last_worth:.3f}." in line
    factors = [
        2 ** straight_line([math.log(size) for size in sizes], [math.log(each[column]) for each in found])[0]
        for column in (0, 1)
    ]
    assert f"the best {BETA} by a factor of {factors[0]:.2f} and its worth by a factor of {factors[1]:.2f}." in line
