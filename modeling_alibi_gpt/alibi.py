# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""ALiBi slopes, biases and windows as pure functions of tensors. Exported to the Hub; imports torch only.

Attention with Linear Biases (Press, Smith and Lewis 2022, arXiv:2108.12409) lowers the score of a query at position i
and a key at position j in proportion to their distance. It uses no other position information. In head h:

    score_h(i, j) = q_i . k_j / sqrt(d)  -  s_h * (i - j),        s_h = beta * m_h

Shapes: H heads, Q queries, K keys. Queries are always the last Q of K positions, so one formula covers prefill,
chunked prefill and decoding.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


SLOPE_KINDS = ("geometric", "uniform", "custom")
_FLOAT32 = torch.finfo(torch.float32)
# No text is this long, and integer arithmetic on it does not overflow.
_ENDLESS_TOKENS = 2**53


def alibi_slopes(
    num_heads: int,
    *,
    beta: float = 1.0,
    kind: str = "geometric",
    bias_max: float = 8.0,
    custom: Sequence[float] | None = None,
) -> Tensor:
    """Return the slope ``s_h = beta * m_h`` of each head.

    ``geometric`` follows section 3 of the paper and its released code. If H is a power of two,
    ``m_h = 2 ** (-bias_max * h / H)`` for h = 1..H. Otherwise, with n the largest power of two below H, the slopes are
    those for n heads, followed by every second slope for 2n heads. ``uniform`` sets ``m_h = 1`` for all heads.
    ``custom`` uses the given m_h.

    Args:
        num_heads: H, at least 1.
        beta: Scalar that multiplies every slope; finite and above 0. The paper uses 1.
        kind: ``geometric``, ``uniform`` or ``custom``.
        bias_max: Range of the geometric exponents. The paper uses 8; MPT calls it ``alibi_bias_max``.
        custom: The H values of m_h, finite and above 0. Required for kind ``custom``, not allowed otherwise.

    Returns:
        ``(H,)`` float32, nats per token of distance.

    Raises:
        ValueError: An argument is out of range.
    """
    check_slopes(num_heads, beta=beta, kind=kind, bias_max=bias_max, custom=custom)
    if custom is not None:
        multipliers = [float(value) for value in custom]
    elif kind == "uniform":
        multipliers = [1.0] * num_heads
    else:
        multipliers = _geometric_multipliers(num_heads, bias_max)
    return torch.tensor([beta * multiplier for multiplier in multipliers], dtype=torch.float32)


def check_slopes(
    num_heads: int, *, beta: float, kind: str, bias_max: float, custom: Sequence[float] | None = None
) -> None:
    """Validate the arguments of :func:`alibi_slopes` without computing slopes. Raises ValueError."""
    if num_heads < 1:
        raise ValueError(f"num_heads must be at least 1, got {num_heads}")
    _require_positive("beta", beta)
    _require_positive("bias_max", bias_max)
    if kind not in SLOPE_KINDS:
        raise ValueError(f"slope kind must be one of {', '.join(SLOPE_KINDS)}, got {kind!r}")
    if (custom is not None) != (kind == "custom"):
        raise ValueError(f"kind 'custom' and custom slopes require each other, got {kind!r} and {custom!r}")
    if custom is not None:
        if len(custom) != num_heads:
            raise ValueError(f"custom slopes: expected {num_heads} values, one per head, got {len(custom)}")
        for value in custom:
            _require_positive("every custom slope", value)
    low, high = _multiplier_ends(num_heads, kind, bias_max, custom)
    if not (_FLOAT32.tiny <= beta * low and beta * high <= _FLOAT32.max):
        raise ValueError(f"slopes from {beta * low:g} to {beta * high:g} exceed the range of float32")


def alibi_bias(slopes: Tensor, q_len: int, kv_len: int | None = None) -> Tensor:
    """Return the bias ``-s_h * |i - j|`` for the last ``q_len`` of ``kv_len`` positions.

    Args:
        slopes: ``(H,)``, nats per token.
        q_len: Q, tokens.
        kv_len: K, tokens, at least ``q_len``; None means ``q_len``.

    Returns:
        ``(H, Q, K)`` float32: 0 between a query and its own key, negative elsewhere.

    Raises:
        ValueError: ``kv_len`` is below ``q_len``.
    """
    distance = _distance(q_len, kv_len, slopes.device)
    return -slopes.float()[:, None, None] * distance.abs()


def alibi_causal_bias(slopes: Tensor, q_len: int, kv_len: int | None = None, mask_value: float = -1e9) -> Tensor:
    """Return :func:`alibi_bias` with ``mask_value`` at keys after the query.

    The default mask value is finite, so JSON can represent the matrix and no row becomes NaN.

    Args:
        slopes: ``(H,)``, nats per token.
        q_len: Q, tokens.
        kv_len: K, tokens, at least ``q_len``; None means ``q_len``.
        mask_value: Value of the entries above the diagonal.

    Returns:
        ``(H, Q, K)`` float32.

    Raises:
        ValueError: ``kv_len`` is below ``q_len``.
    """
    is_future = _distance(q_len, kv_len, slopes.device) < 0
    return alibi_bias(slopes, q_len, kv_len).masked_fill(is_future, mask_value)


def alibi_windows(slopes: Tensor, score_margin: float | Tensor, tolerance: float) -> Tensor:
    """Return how many of the nearest keys a query of each head must read.

    If no key's content score exceeds that of the query's own key by more than ``score_margin``, a key at distance d
    has an attention weight of at most ``exp(score_margin - s*d)``. Keys at distance W and beyond have at most the
    geometric sum ``exp(margin - s*W) / (1 - exp(-s))`` in total. The window is the smallest W for which that sum is at
    most ``tolerance``. Keys at distances 0 to W-1 are read.

    Args:
        slopes: ``(H,)``, nats per token, above 0.
        score_margin: Nats; a number or ``(H,)``.
        tolerance: Largest total attention weight to leave out, above 0.

    Returns:
        ``(H,)`` int64, tokens, from 0 to 2**53.

    Raises:
        ValueError: ``tolerance`` is not a finite number above 0.
    """
    _require_positive("tolerance", tolerance)
    slopes = slopes.double()
    margin = torch.as_tensor(score_margin, dtype=torch.float64, device=slopes.device)

    def log_left_out(windows: Tensor) -> Tensor:
        return margin - slopes * windows - torch.log(-torch.expm1(-slopes))

    log_tolerance = math.log(tolerance)
    windows = torch.ceil(log_left_out(torch.zeros_like(slopes)).sub(log_tolerance) / slopes)
    windows = windows.clamp(min=0, max=_ENDLESS_TOKENS)
    # The quotient may round to either side of an integer, so check the bound itself.
    windows = torch.where(log_left_out(windows) > log_tolerance, windows + 1, windows)
    one_less = (windows - 1).clamp(min=0)
    return torch.where(log_left_out(one_less) <= log_tolerance, one_less, windows).long()


def scale_slopes(slopes: Tensor, kind: str, factor: float | Tensor) -> Tensor:
    """Reduce slopes for texts longer than the training length.

    ``linear`` divides every slope by the factor (position interpolation, Al-Khateeb et al. 2023, arXiv:2310.13017).
    ``ntk`` keeps the steepest slope, divides the flattest by the factor and interpolates geometrically between them.

    Args:
        slopes: ``(..., H)``, nats per token.
        kind: ``linear`` or ``ntk``.
        factor: At least 1; a number or a tensor that broadcasts with ``slopes``.

    Returns:
        Slopes of the broadcast shape.

    Raises:
        ValueError: ``kind`` is neither ``linear`` nor ``ntk``.
    """
    if kind == "linear":
        return slopes / factor
    if kind != "ntk":
        raise ValueError(f"scaling kind must be linear or ntk, got {kind!r}")
    log_slopes = slopes.log()
    steepest, flattest = log_slopes.amax(-1, keepdim=True), log_slopes.amin(-1, keepdim=True)
    # If all slopes are equal, divide each by the whole factor, like a single flattest head.
    span = steepest - flattest
    share = torch.where(span > 0, (steepest - log_slopes) / span.clamp(min=torch.finfo(span.dtype).tiny), 1.0)
    return slopes / factor**share


def _geometric_multipliers(num_heads: int, bias_max: float) -> list[float]:
    power = _power_of_two(num_heads)
    multipliers = [2.0 ** (-bias_max * h / power) for h in range(1, power + 1)]
    extra = [2.0 ** (-bias_max * (2 * h - 1) / (2 * power)) for h in range(1, num_heads - power + 1)]
    return multipliers + extra


def _multiplier_ends(
    num_heads: int, kind: str, bias_max: float, custom: Sequence[float] | None
) -> tuple[float, float]:
    """The smallest and the largest ``m_h``, at once, because a config may name more heads than there is memory for."""
    if custom is not None:
        return min(custom), max(custom)
    if kind == "uniform":
        return 1.0, 1.0
    power = _power_of_two(num_heads)
    return 2.0**-bias_max, 2.0 ** (-bias_max / (power if power == num_heads else 2 * power))


def _power_of_two(num_heads: int) -> int:
    """The largest power of two that is at most ``num_heads``."""
    return int(2 ** math.floor(math.log2(num_heads)))


def _distance(q_len: int, kv_len: int | None, device: torch.device) -> Tensor:
    """Query position minus key position, ``(Q, K)`` float32; exact up to 2**24 tokens."""
    kv_len = q_len if kv_len is None else kv_len
    if kv_len < q_len:
        raise ValueError(f"kv_len must be at least q_len ({q_len}), got {kv_len}")
    query_positions = torch.arange(kv_len - q_len, kv_len, device=device)
    key_positions = torch.arange(kv_len, device=device)
    return (query_positions[:, None] - key_positions[None, :]).float()


def _require_positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
