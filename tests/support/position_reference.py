"""Float64 reference of the position methods: the formula of each paper for one pair of tokens, in plain Python.

It shares no code with the package. Positions count from 0, a query at i sees keys at j <= i, and weights have the
names of the model.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


Array = NDArray[np.float64]
Weights = Mapping[str, Array]


def pair_bias(weights: Weights, config: Any, layer: int, i: int, j: int) -> Array:
    """``(H,)`` bias of the scores of query i and key j in a layer; zero for methods without a bias."""
    formula = FORMULAS.get(config.position_method)
    return np.zeros(config.num_attention_heads) if formula is None else formula(weights, config, layer, i, j)


def parameter(weights: Weights, name: str) -> Array:
    return weights[f"model.position_method.{name}"]


def t5_bias(weights: Weights, config: Any, layer: int, i: int, j: int) -> Array:
    """Bucket b of the upper half begins at ``n * (max / n) ** ((b - n) / n)``, where n is half the number of buckets.

    Source: Raffel et al. 2020, section 2.1: logarithmic up to an offset of 128, with one bucket beyond it.
    """
    half, distance = config.t5_num_buckets // 2, i - j
    begins = [*range(half)]
    begins += [half * (config.t5_max_distance / half) ** (step / half) for step in range(half)]
    return parameter(weights, "bucket_bias")[max(b for b, begin in enumerate(begins) if begin <= distance)]


def shared_offset_bias(weights: Weights, config: Any, layer: int, i: int, j: int) -> Array:
    """Source: Shaw et al. 2018, section 3.2 (clipping), with scalars instead of vectors."""
    return parameter(weights, "offset_bias")[min(i - j, config.train_context_length - 1)]


def kerple_bias(weights: Weights, config: Any, layer: int, i: int, j: int) -> Array:
    """Source: Chi et al. 2022, section 4: ``-r1 log(1 + r2 |i - j|)`` and ``-r1 |i - j| ^ r2``, ``0 < r2 <= 2``."""
    r1 = np.exp(parameter(weights, "bias_log_r1"))
    if config.kerple_variant == "log":
        r2 = np.exp(parameter(weights, "bias_log_r2"))
        return np.array([-a * math.log(1 + b * abs(i - j)) for a, b in zip(r1, r2, strict=True)])
    r2 = 2 / (1 + np.exp(-parameter(weights, "bias_logit_r2")))
    return np.array([-a * float(abs(i - j)) ** b for a, b in zip(r1, r2, strict=True)])


def fire_bias(weights: Weights, config: Any, layer: int, i: int, j: int) -> Array:
    """Source: Li et al. 2024, section 3: ``f(psi(i - j) / psi(max(L, i)))``, ``psi(x) = log(c x + 1)``."""
    index = 0 if config.fire_shared_by_layers else layer
    c = math.exp(parameter(weights, "bias_log_c")[index])
    threshold = math.exp(parameter(weights, "bias_log_threshold")[index])
    x = math.log(c * (i - j) + 1) / math.log(c * max(threshold, i) + 1)
    total = np.zeros(config.num_attention_heads)
    for unit in range(config.fire_hidden_size):
        inner = parameter(weights, "hidden_weight")[index][unit] * x + parameter(weights, "hidden_bias")[index][unit]
        total += max(inner, 0.0) * parameter(weights, "output_weight")[index][unit]
    return total


def sandwich_bias(weights: Weights, config: Any, layer: int, i: int, j: int) -> Array:
    """Product of the sinusoidal embeddings over each head's compression ratio, minus that of a token with itself.

    Source: Chi et al. 2023, arXiv:2212.10356; softmax ignores the subtracted constant.
    """
    products = sinusoid(i, config.sandwich_dim) @ sinusoid(j, config.sandwich_dim)
    itself = sinusoid(i, config.sandwich_dim) @ sinusoid(i, config.sandwich_dim)
    num_heads = config.num_attention_heads
    return np.array([(products - itself) / (8 * head / num_heads) for head in range(1, num_heads + 1)])


def sinusoid(position: int, dim: int) -> Array:
    """Source: Vaswani et al. 2017, section 3.5."""
    waves = []
    for k in range(dim // 2):
        waves += [math.sin(position / 10000 ** (2 * k / dim)), math.cos(position / 10000 ** (2 * k / dim))]
    return np.array(waves)


FORMULAS = {
    "t5": t5_bias,
    "shared_offset": shared_offset_bias,
    "kerple": kerple_bias,
    "fire": fire_bias,
    "sandwich": sandwich_bias,
}


def rope_angle(config: Any, position: int, k: int) -> float:
    """Rotation angle of pair k of a token, in radians.

    Source: Su et al. 2021, section 3.2.2; Chen et al. 2023 for ``linear``; Peng et al. 2024 for the others, with the
    YaRN ramp of their code, and with the token's own position as the text length in ``dynamic_ntk``.
    """
    base, dim, length = config.rope_theta, config.head_dim, config.train_context_length
    scaling = config.rope_extension or {"type": None}
    kind, factor = scaling["type"], scaling.get("factor", 1.0)
    if kind == "linear":
        return position / factor / base ** (2 * k / dim)
    if kind == "ntk":
        base *= factor ** (dim / (dim - 2))
    elif kind == "dynamic_ntk":
        tokens = max(position + 1, length)
        base *= (factor * tokens / length - (factor - 1)) ** (dim / (dim - 2))
    frequency = base ** (-2 * k / dim)
    if kind == "yarn":
        share = yarn_interpolated_share(config, k)
        frequency = share * frequency / factor + (1 - share) * frequency
    return position * frequency


def yarn_interpolated_share(config: Any, k: int) -> float:
    """0 before the pair with ``beta_fast`` rotations in the training length, 1 after the one with ``beta_slow``."""

    def pair_that_turns(times: float) -> float:
        wavelength = config.train_context_length / times
        return config.head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_that_turns(config.rope_extension.get("beta_fast", 32))), 0)
    high = min(math.ceil(pair_that_turns(config.rope_extension.get("beta_slow", 1))), config.head_dim - 1)
    return min(max((k - low) / (high - low), 0.0), 1.0)


def rope_gain(config: Any) -> float:
    """Factor of rotated queries and keys: ``0.1 ln(factor) + 1`` for YaRN (Peng et al. 2024, section 3.4)."""
    scaling = config.rope_extension or {"type": None}
    if scaling["type"] != "yarn":
        return 1.0
    return scaling.get("attention_factor", 0.1 * math.log(scaling["factor"]) + 1)
