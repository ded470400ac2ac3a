"""Windows score every token once, in the context that their protocol promises."""

import pytest

from modeling_alibi_gpt.evaluation.windows import plan_windows
from tests.support.scoring_reference import context_start


@pytest.mark.parametrize("length, stride", [(1, None), (4, None), (7, None), (1, 1), (4, 1), (7, 3), (8, 8), (50, 9)])
def test_windows_score_every_token_once_in_its_context(length: int, stride: int | None):
    protocol = "nonoverlapping" if stride is None else "sliding"
    for num_tokens in range(2, 40):
        windows = plan_windows(num_tokens, length_tokens=length, protocol=protocol, stride_tokens=stride)
        scored = [(i, window.start) for window in windows for i in range(num_tokens)[window.scored]]
        assert scored == [(i, context_start(i, num_tokens - 1, length, stride)) for i in range(num_tokens - 1)]
        assert all(0 <= window.start < window.stop <= num_tokens - 1 for window in windows)
        assert all(window.num_inputs <= length for window in windows)


@pytest.mark.parametrize(
    "num_tokens, length, protocol, stride, message",
    [
        (1, 4, "nonoverlapping", None, "at least 2 tokens, got 1"),
        (9, 0, "nonoverlapping", None, "length_tokens must be at least 1, got 0"),
        (9, 4, "nonoverlapping", 2, "needs protocol=sliding"),
        (9, 4, "sliding", 5, "in 1..4"),
        (9, 4, "sliding", 0, "in 1..4"),
        (9, 4, "strided", None, "nonoverlapping, sliding, got 'strided'"),
    ],
)
def test_impossible_windows_are_refused(num_tokens: int, length: int, protocol: str, stride: int | None, message: str):
    with pytest.raises(ValueError, match=message):
        plan_windows(num_tokens, length_tokens=length, protocol=protocol, stride_tokens=stride)
