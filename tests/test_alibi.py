"""The pure functions of ALiBi against the paper's numbers, the course's worked examples and brute force."""

import math

import pytest
import torch

from modeling_alibi_gpt.alibi import (
    alibi_bias,
    alibi_causal_bias,
    alibi_slopes,
    alibi_windows,
    scale_slopes,
)


def test_worked_example_of_the_course() -> None:
    slopes = alibi_slopes(1, beta=0.1, kind="uniform")
    assert alibi_bias(slopes, 6)[0, 5, 2].item() == pytest.approx(-0.3, rel=1e-6)


def test_slopes_of_the_paper() -> None:
    assert alibi_slopes(2).tolist() == [1 / 16, 1 / 256]
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    # Not a power of two: the 8 slopes for 8 heads, then every second one of the 16 for 16 heads.
    sixteen = [2.0 ** (-h / 2) for h in range(1, 17)]
    expected = torch.tensor([2.0**-h for h in range(1, 9)] + sixteen[0::2][:4])
    assert torch.equal(alibi_slopes(12), expected)


@pytest.mark.parametrize("num_heads", [1, 3, 6, 12, 20])
def test_beta_multiplies_every_slope(num_heads: int) -> None:
    torch.testing.assert_close(alibi_slopes(num_heads, beta=0.5), 0.5 * alibi_slopes(num_heads), rtol=0, atol=0)


def test_kinds_of_slopes() -> None:
    assert alibi_slopes(3, kind="uniform", beta=0.25).tolist() == [0.25] * 3
    assert alibi_slopes(3, kind="custom", custom=[1, 0.5, 2.0], beta=2).tolist() == [2.0, 1.0, 4.0]
    assert alibi_slopes(4, bias_max=16.0).tolist() == [2.0**-4, 2.0**-8, 2.0**-12, 2.0**-16]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"num_heads": 2, "beta": 0.0}, "beta must be a finite number above 0, got 0.0"),
        ({"num_heads": 2, "beta": -1.0}, "beta must be"),
        ({"num_heads": 2, "beta": math.nan}, "beta must be"),
        ({"num_heads": 2, "beta": math.inf}, "beta must be"),
        ({"num_heads": 2, "beta": True}, "beta must be"),
        ({"num_heads": 2, "bias_max": 0.0}, "bias_max must be"),
        ({"num_heads": 2, "kind": "linear"}, "slope kind must be one of"),
        ({"num_heads": 2, "kind": "custom"}, "kind 'custom' and custom slopes require each other"),
        ({"num_heads": 2, "custom": [1.0, 1.0]}, "kind 'custom' and custom slopes require each other"),
        ({"num_heads": 2, "kind": "custom", "custom": [1.0]}, "expected 2 values, one per head, got 1"),
        ({"num_heads": 2, "kind": "custom", "custom": [1.0, -1.0]}, "every custom slope must be"),
        ({"num_heads": 2, "beta": 1e40}, "slopes from 3.90625e.37 to 6.25e.38 exceed the range of float32"),
        ({"num_heads": 2, "bias_max": 200.0}, "exceed the range of float32"),
        ({"num_heads": 2, "kind": "custom", "custom": [1.0, 1e-39]}, "slopes from 1e-39 to 1 exceed the range"),
        # 3.9e37, 6.3e38 and, in the head that the larger power of two adds, 2.5e39.
        ({"num_heads": 3, "beta": 1e40}, "slopes from 3.90625e.37 to 2.5e.39 exceed the range of float32"),
        ({"num_heads": 1, "beta": 1e42}, "slopes from 3.90625e.39 to 3.90625e.39 exceed the range of float32"),
    ],
)
def test_impossible_slopes_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        alibi_slopes(**arguments)


@pytest.mark.parametrize("num_heads", [1, 2, 3, 8, 12])
def test_the_range_of_slopes_is_that_of_their_ends(num_heads: int) -> None:
    """A beta just inside float32's range for the steepest or the flattest slope is taken; one just outside is not."""
    slopes, float32 = alibi_slopes(num_heads).double(), torch.finfo(torch.float32)
    for edge, outside in ((float32.max / float(slopes.max()), 2.0), (float32.tiny / float(slopes.min()), 0.5)):
        assert alibi_slopes(num_heads, beta=edge * outside**-0.01).isfinite().all()
        with pytest.raises(ValueError, match="exceed the range of float32"):
            alibi_slopes(num_heads, beta=edge * outside**0.01)


def test_causal_bias_matrix_of_the_course() -> None:
    """The (H, T, T) matrix with -1e9 above the diagonal, entry by entry."""
    num_heads, length = 2, 3
    expected = [
        [
            [-(2.0 ** (-8 * (h + 1) / num_heads)) * (i - j) if j <= i else -1e9 for j in range(length)]
            for i in range(length)
        ]
        for h in range(num_heads)
    ]
    matrix = alibi_causal_bias(alibi_slopes(num_heads), length)
    assert matrix.dtype == torch.float32
    assert torch.equal(matrix, torch.tensor(expected))


@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (1, 7), (3, 7), (7, 7)])
def test_bias_is_right_aligned(q_len: int, kv_len: int) -> None:
    slopes = alibi_slopes(3)
    whole = alibi_bias(slopes, kv_len)
    assert torch.equal(alibi_bias(slopes, q_len, kv_len), whole[:, kv_len - q_len :])
    assert (whole <= 0).all() and (whole.diagonal(dim1=1, dim2=2) == 0).all()
    assert torch.equal(whole, whole.transpose(1, 2))


def test_fewer_keys_than_queries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kv_len must be at least q_len \(3\), got 2"):
        alibi_bias(alibi_slopes(1), 3, 2)


def _left_out(slope: float, margin: float, window: int) -> float:
    """The sum of ``exp(margin - slope * d)`` from ``d = window`` on, in the closed form of a geometric series."""
    return math.exp(margin - slope * window) / -math.expm1(-slope)


@pytest.mark.parametrize("margin", [0.0, 1.5, 18.0])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-6, 2.0**-24])
def test_windows_are_the_smallest_that_keep_the_tolerance(margin: float, tolerance: float) -> None:
    slopes = alibi_slopes(12)
    windows = alibi_windows(slopes, margin, tolerance)
    assert windows.dtype == torch.int64 and windows.shape == (12,)
    for slope, window in zip(slopes.double().tolist(), windows.tolist(), strict=True):
        # One ulp of the logarithm may stand either side of the bound.
        assert _left_out(slope, margin, window) <= tolerance * (1 + 1e-12)
        assert window == 0 or _left_out(slope, margin, window - 1) > tolerance * (1 - 1e-12)


def test_windows_of_flat_heads_and_boundless_margins_are_endless() -> None:
    flat = alibi_windows(torch.tensor([1e-9, 1e-20, 1e-37]), 5.0, 1e-6)
    assert flat[0] == pytest.approx(4e10, rel=0.02) and (flat[1:] == 2**53).all()
    assert alibi_windows(torch.tensor([0.5]), math.inf, 1e-6).item() == 2**53


def test_windows_agree_with_a_plain_sum() -> None:
    window = alibi_windows(torch.tensor([0.5]), 2.0, 1e-3).item()
    terms = [math.exp(2.0 - 0.5 * distance) for distance in range(400)]
    assert window == next(w for w in range(400) if sum(terms[w:]) <= 1e-3)


def test_windows_take_a_margin_for_each_head_and_refuse_a_tolerance_of_zero() -> None:
    slopes = alibi_slopes(2)
    both = alibi_windows(slopes, torch.tensor([0.0, 9.0]), 1e-6)
    assert both.tolist() == [alibi_windows(slopes, m, 1e-6)[h].item() for h, m in enumerate((0.0, 9.0))]
    with pytest.raises(ValueError, match="tolerance must be a finite number above 0, got 0"):
        alibi_windows(slopes, 0.0, 0.0)


def test_scaling_of_slopes() -> None:
    slopes = alibi_slopes(8)
    torch.testing.assert_close(scale_slopes(slopes, "linear", 4.0), slopes / 4)
    scaled = scale_slopes(slopes, "ntk", 4.0)
    assert scaled[0] == slopes[0]
    torch.testing.assert_close(scaled[-1], slopes[-1] / 4)
    torch.testing.assert_close(slopes / scaled, 4.0 ** (torch.arange(8) / 7))
    with pytest.raises(ValueError, match="linear or ntk"):
        scale_slopes(slopes, "yarn", 2.0)
