"""Confidence intervals over seeds and blocks of text, which are crossed: every seed is evaluated on every block."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


CONFIDENCE = 0.95


def half_width(values: ArrayLike) -> float:
    """Half-width of the 95 % confidence interval of the mean of ``values``, over seeds and blocks of text.

    The standard error is that of a bootstrap that resamples seeds and blocks independently (the pigeonhole bootstrap:
    Owen 2007, Annals of Applied Statistics 1(2), doi:10.1214/07-AOAS122). It draws n - 1 of n, because the variance of
    the bootstrap is otherwise too small by a factor (n - 1) / n. For a mean it has a closed form, so nothing is
    sampled. Percentiles of three seeds would be far too narrow, so the error is multiplied by a quantile of Student's
    t instead (Hesterberg 2015, The American Statistician 69(4), doi:10.1080/00031305.2015.1089789), with the degrees
    of freedom of a sum of two variances (Satterthwaite 1946, Biometrics Bulletin 2(6), doi:10.2307/3002019).

    In simulations with 3 seeds and 16 blocks, the interval covers the mean in 92 to 96 of 100 cases, and more often if
    the effect of a seed varies between blocks.

    Blocks count as independent. Consecutive blocks of one document are not, so the interval is about more text of the
    same documents and not about others. It is of one mean: of twenty such intervals, one misses its mean by chance.

    Args:
        values: ``(S, B)`` for S seeds, at least 2, and B blocks. For paired data, pass the paired differences.
    """
    table = np.asarray(values, dtype=float)
    of_seeds, of_blocks = (table.mean(axis=axis) for axis in (1, 0))
    seeds, blocks = _variance_of_mean(of_seeds), _variance_of_mean(of_blocks)
    if seeds + blocks == 0:
        return 0.0
    of_both = table - of_seeds[:, None] - of_blocks + table.mean()
    both = (of_both**2).mean() / max(1, (table.shape[0] - 1) * (table.shape[1] - 1))
    of_each = zip((seeds, blocks), table.shape, strict=True)
    freedom = (seeds + blocks) ** 2 / sum(part**2 / (size - 1) for part, size in of_each if part)
    return float(t_quantile(freedom) * np.sqrt(seeds + blocks + both))


def t_quantile(degrees_of_freedom: float) -> float:
    """The value that Student's t exceeds in absolute value with probability 5 %.

    With t = sqrt(n) tan(a), the density in the angle a is proportional to cos(a) ** (n - 1), which is integrated here.
    """
    angles = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos(angles[:-1] + angles[1] / 2) ** (degrees_of_freedom - 1)
    within = np.concatenate([[0.0], density.cumsum() / density.sum()])
    return float(np.sqrt(degrees_of_freedom) * np.tan(np.interp(CONFIDENCE, within, angles)))


def _variance_of_mean(values: NDArray[np.float64]) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0
