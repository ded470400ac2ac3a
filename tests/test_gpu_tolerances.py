"""What the tests on a GPU tolerate, checked on a CPU."""

import pytest
import torch

from modeling_alibi_gpt.alibi import alibi_slopes
from tests.gpu.test_cuda_attention import LENGTH, assert_slope_gradients, definition, draw


def test_missing_gradients_of_slopes_are_noticed() -> None:
    """Of the heads with the steepest slopes, whose gradients are smaller than the rounding of the flattest."""
    case, slopes = draw("whole", torch.bfloat16, 8, 4, 64, LENGTH), alibi_slopes(8)
    expected = definition(case, slopes)[1][3]
    found = expected.clone()
    found[:3] = 0.0
    with pytest.raises(AssertionError, match="gradients of slopes are off"):
        assert_slope_gradients(found, expected, case, slopes)
