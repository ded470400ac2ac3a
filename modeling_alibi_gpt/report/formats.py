"""Format numbers for cells, names and sentences."""

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from modeling_alibi_gpt.report.statistics import Difference


BETA = "\N{GREEK SMALL LETTER BETA}"
MISSING_CELL = "\N{EN DASH}"


def format_count(value: float | None) -> str:
    return MISSING_CELL if value is None or pd.isna(value) else f"{value:,.0f}"


def format_mebibytes(num_bytes: float | None) -> str:
    return MISSING_CELL if num_bytes is None or pd.isna(num_bytes) else format_count(num_bytes / 2**20)


def format_perplexity(value: float | None) -> str:
    if value is None or pd.isna(value):
        return MISSING_CELL
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2e}"


def format_nats(value: float | None) -> str:
    """Nats or bits, to four decimals."""
    return MISSING_CELL if value is None or pd.isna(value) else f"{value:.4f}"


def format_ratio(value: float | None, num_digits: int = 4) -> str:
    """Values of beta and slopes: powers of two below 1 as fractions, others to ``num_digits`` significant digits."""
    if value is None or pd.isna(value):
        return MISSING_CELL
    if 0 < value < 1 and math.frexp(value)[0] == 0.5:
        return f"1/{round(1 / value):,}"
    return f"{value:.{num_digits}g}"


def format_range(values: Iterable[float]) -> str:
    """``1.02 to 2.05``, or one number if both ends are equal to two decimals."""
    ends = sorted(values)
    return " to ".join(dict.fromkeys((f"{ends[0]:.2f}", f"{ends[-1]:.2f}")))


def format_share(value: float) -> str:
    """A share to two decimals. The order of summation must not change how a tie rounds."""
    return f"{round(value, 9):.2f}"


def format_seconds(value: float) -> str:
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"


def format_mean(difference: Difference) -> str:
    """``+0.031``: the mean in nats."""
    return with_minus(f"{difference.mean:+.3f}")


def format_change(difference: Difference | None) -> str:
    """``+0.031 ± 0.004``: the mean in nats and half of its 95 % interval; a dash for None.

    Without an interval: ``+0.031 (+0.028, +0.034)``, the mean and the value of each seed, or the mean of one seed.
    """
    if difference is None:
        return MISSING_CELL
    if difference.half_width is not None:
        return f"{format_mean(difference)} \N{PLUS-MINUS SIGN} {difference.half_width:.3f}"
    seeds = ", ".join(f"{value:+.3f}" for value in difference.by_seed)
    return format_mean(difference) + (with_minus(f" ({seeds})") if len(difference.by_seed) > 1 else "")


def protocol_name(protocol: str) -> str:
    """Display name of a protocol, without its strides."""
    return "non-overlapping" if protocol == "nonoverlapping" else protocol


def describe_protocol(protocol: str, strides_tokens: Sequence[int]) -> str:
    """Display name of a protocol, with its shortest and longest stride in tokens."""
    if protocol != "sliding":
        return protocol_name(protocol)
    ends = dict.fromkeys((format_count(min(strides_tokens)), format_count(max(strides_tokens))))
    return f"sliding, stride {' to '.join(ends)}"


def with_minus(number: str) -> str:
    """The number with minus signs instead of hyphens."""
    return number.replace("-", "\N{MINUS SIGN}")
