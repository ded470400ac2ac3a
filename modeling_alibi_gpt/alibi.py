# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""ALiBi: slopes, biases and windows as pure functions of tensors. Travels to the Hub; imports torch only.

Attention with Linear Biases (Press, Smith and Lewis 2022, arXiv:2108.12409) adds to the score of query position i and
key position j, in head h, a penalty that grows linearly with their distance, and uses no other position information:

    score_h(i, j) = q_i . k_j / sqrt(d)  -  s_h * (i - j),        s_h = beta * m_h

Shapes: H heads, Q queries, K keys. Queries are always the last Q of K positions, so prefill, chunked prefill and
decoding share one formula.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


SLOPE_KINDS = ("geometric", "uniform", "custom")


def alibi_slopes(
    num_heads: int,
    *,
    beta: float = 1.0,
    kind: str = "geometric",
    bias_max: float = 8.0,
    custom: Sequence[float] | None = None,
) -> Tensor:
    """Slope ``s_h = beta * m_h`` of every head.

    ``geometric`` is the paper's (section 3 and its released code): for a power of two,
    ``m_h = 2 ** (-bias_max * h / H)``, h = 1..H; otherwise the slopes for n heads, n the largest power of two below H,
    then every second slope for 2n heads. ``uniform`` is one penalty for all heads, ``m_h = 1``. ``custom`` takes the
    values of m_h as given.

    Args:
        num_heads: H, at least 1.
        beta: Scalar factor of every slope; finite and above 0. 1 is the paper's.
        kind: ``geometric``, ``uniform`` or ``custom``.
        bias_max: Range of the geometric exponents; 8 is the paper's. MPT calls it ``alibi_bias_max``.
        custom: The H values of m_h, finite and above 0; required for ``custom`` and not allowed otherwise.

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
    """Raise a ValueError unless :func:`alibi_slopes` accepts these arguments; computes no slope."""
    if num_heads < 1:
        raise ValueError(f"num_heads must be at least 1, got {num_heads}")
    _require_positive("beta", beta)
    _require_positive("bias_max", bias_max)
    if kind not in SLOPE_KINDS:
        raise ValueError(f"kind of slopes must be one of {', '.join(SLOPE_KINDS)}, got {kind!r}")
    if (custom is not None) != (kind == "custom"):
        raise ValueError(f"custom slopes go with kind 'custom', got kind {kind!r} and custom {custom!r}")
    if custom is not None:
        if len(custom) != num_heads:
            raise ValueError(f"custom slopes: expected {num_heads} values, one per head, got {len(custom)}")
        for value in custom:
            _require_positive("every custom slope", value)


def alibi_bias(slopes: Tensor, q_len: int, kv_len: int | None = None) -> Tensor:
    """Bias ``-s_h * |i - j|`` for the last ``q_len`` of ``kv_len`` positions.

    Args:
        slopes: ``(H,)``, nats per token.
        q_len: Q, tokens.
        kv_len: K, tokens, at least ``q_len``; None means ``q_len``.

    Returns:
        ``(H, Q, K)`` float32, every entry at most 0, and 0 for a query and its own key.

    Raises:
        ValueError: ``kv_len`` is below ``q_len``.
    """
    distance = _distance(q_len, kv_len, slopes.device)
    return -slopes.float()[:, None, None] * distance.abs()


def alibi_causal_bias(slopes: Tensor, q_len: int, kv_len: int | None = None, mask_value: float = -1e9) -> Tensor:
    """:func:`alibi_bias` with ``mask_value`` on the keys that come after the query.

    The mask value is finite, so that JSON can represent the matrix and no row becomes NaN.

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
    """Number of nearest keys that a query of each head must read.

    If no key's content score exceeds that of the query's own key by more than ``score_margin``, then the weight of a
    key at distance d is at most ``exp(score_margin - s*d)`` times that of the own key, hence at most that. The keys at
    distance W and beyond have, all together, at most the geometric sum ``exp(margin - s*W) / (1 - exp(-s))``. The
    window is the smallest W for which that sum is at most ``tolerance``: keys at distance 0..W-1 are read.

    Args:
        slopes: ``(H,)``, nats per token, above 0.
        score_margin: Nats, a number or ``(H,)``.
        tolerance: Largest total attention weight left out, above 0.

    Returns:
        ``(H,)`` int64, tokens, at least 0.

    Raises:
        ValueError: ``tolerance`` is not a finite number above 0.
    """
    _require_positive("tolerance", tolerance)
    slopes = slopes.double()
    margin = torch.as_tensor(score_margin, dtype=torch.float64, device=slopes.device)

    def log_left_out(windows: Tensor) -> Tensor:
        return margin - slopes * windows - torch.log(-torch.expm1(-slopes))

    log_tolerance = math.log(tolerance)
    windows = torch.ceil(log_left_out(torch.zeros_like(slopes)).sub(log_tolerance) / slopes).clamp(min=0)
    # The quotient may round to either side of a whole number; the bound itself decides.
    windows = torch.where(log_left_out(windows) > log_tolerance, windows + 1, windows)
    one_less = (windows - 1).clamp(min=0)
    return torch.where(log_left_out(one_less) <= log_tolerance, one_less, windows).long()


def scale_slopes(slopes: Tensor, kind: str, factor: float | Tensor) -> Tensor:
    """Flatten slopes for text longer than the training length.

    ``linear`` divides every slope by the factor (position interpolation, Al-Khateeb et al. 2023, arXiv:2310.13017).
    ``ntk`` keeps the steepest slope, divides the flattest by the factor and interpolates geometrically between them.

    Args:
        slopes: ``(..., H)``, nats per token.
        kind: ``linear`` or ``ntk``.
        factor: At least 1; a number or a tensor that broadcasts against ``slopes``.

    Returns:
        Slopes of the broadcast shape.

    Raises:
        ValueError: ``kind`` is neither of the two.
    """
    if kind == "linear":
        return slopes / factor
    if kind != "ntk":
        raise ValueError(f"kind of scaling must be linear or ntk, got {kind!r}")
    log_slopes = slopes.log()
    steepest, flattest = log_slopes.amax(-1, keepdim=True), log_slopes.amin(-1, keepdim=True)
    # Equal slopes have no steepest: then each is divided by the whole factor, as a single flattest head would be.
    span = steepest - flattest
    share = torch.where(span > 0, (steepest - log_slopes) / span.clamp(min=torch.finfo(span.dtype).tiny), 1.0)
    return slopes / factor**share


def _geometric_multipliers(num_heads: int, bias_max: float) -> list[float]:
    power = 2 ** math.floor(math.log2(num_heads))
    multipliers = [2.0 ** (-bias_max * h / power) for h in range(1, power + 1)]
    extra = [2.0 ** (-bias_max * (2 * h - 1) / (2 * power)) for h in range(1, num_heads - power + 1)]
    return multipliers + extra


def _distance(q_len: int, kv_len: int | None, device: torch.device) -> Tensor:
    """``(Q, K)`` float32: query position minus key position, exact up to 2**24 tokens."""
    kv_len = q_len if kv_len is None else kv_len
    if kv_len < q_len:
        raise ValueError(f"kv_len must be at least q_len ({q_len}), got {kv_len}")
    query_positions = torch.arange(kv_len - q_len, kv_len, device=device)
    key_positions = torch.arange(kv_len, device=device)
    return (query_positions[:, None] - key_positions[None, :]).float()


def _require_positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
