# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""RoPE and its extensions beyond the training length. Exported to the Hub.

Shapes: B batch (or 1 if all rows agree), H heads, Q queries, d head size.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .position_base import PositionMethod, bias_dtype


# Type of rope_extension -> its required keys and its optional keys.
ROPE_EXTENSION_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "linear": ({"type", "factor"}, set()),
    "ntk": ({"type", "factor"}, set()),
    "dynamic_ntk": ({"type"}, {"factor"}),
    "yarn": ({"type", "factor"}, {"beta_fast", "beta_slow", "attention_factor"}),
}


class RotaryPositions(PositionMethod):
    """RoPE: rotates queries and keys by angles that grow with position (Su et al. 2021, arXiv:2104.09864, 3.2).

    Dimension k is paired with k + d/2, as in Llama checkpoints. ``rope_extension`` slows the rotation, so that texts
    longer than ``train_context_length`` stay within the angles seen in training; see ``rope_frequencies``.

    Scores depend only on the distance, except with ``dynamic_ntk``. As published, the base of that method depends on
    the length of the whole text, so cached keys would have to be rotated again as the text grows. Here each token is
    rotated as if the text ended with it, which is what transformers computes when it decodes token by token. Caching,
    chunking and later tokens therefore do not change results. Beyond the training length, however, tokens have
    different bases, so scores no longer depend only on the distance. ``ntk`` uses a single base.
    """

    @classmethod
    def check_config(cls, config: Any) -> None:
        if config.head_dim % 2:
            raise ValueError(f"rope needs an even head_dim, got {config.head_dim}")
        if config.rope_extension is not None:
            _check_extension(config.rope_extension, config.head_dim)

    def rotate(self, query: Tensor, key: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        dtype = bias_dtype(query)
        frequencies, factor = rope_frequencies(self.config, position_ids, dtype)
        angles = (position_ids[..., None].to(dtype) * frequencies)[:, None]  # (B, 1, Q, d / 2)
        waves = (angles.cos() * factor, angles.sin() * factor)
        cos, sin = (torch.cat((wave, wave), dim=-1).to(query.dtype) for wave in waves)
        return query * cos + _rotate_half(query) * sin, key * cos + _rotate_half(key) * sin


def rope_frequencies(config: Any, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Return the rotation frequency of each dimension pair and the scale of the rotated queries and keys.

    With base b, factor f and training length L, the frequency of pair k is ``b ** (-2k / d)``, and

    - ``linear`` divides it by f (position interpolation, Chen et al. 2023, arXiv:2306.15595, section 2);
    - ``ntk`` uses the base ``b * f ** (d / (d - 2))``, which slows only the slowest pair by the full f (NTK-aware
      interpolation, named in Peng et al. 2024, arXiv:2309.00071, section 3.1);
    - ``dynamic_ntk`` replaces f by ``f * s - (f - 1)``, where s is the number of tokens up to and including this one
      divided by L, at least 1 (arXiv:2309.00071, section 3.3; f as in transformers);
    - ``yarn`` divides it by f for pairs that turn fewer than ``beta_slow`` times in L tokens, keeps it for pairs that
      turn more than ``beta_fast`` times, and interpolates in between; queries and keys are each multiplied by
      ``0.1 ln(f) + 1`` (arXiv:2309.00071, sections 3.2 and 3.4).

    Args:
        config: A validated config.
        position_ids: ``(B, Q)``, tokens.
        dtype: float32 or float64.

    Returns:
        Frequencies in radians per token, ``(d / 2,)`` or ``(B, Q, d / 2)`` for ``dynamic_ntk``; and the scale.
    """
    dim, base, extension = config.head_dim, config.rope_theta, config.rope_extension or {}
    exponents = torch.arange(0, dim, 2, device=position_ids.device, dtype=dtype) / dim
    kind, factor = extension.get("type"), extension.get("factor", 1.0)
    if kind == "linear":
        return base**-exponents / factor, 1.0
    if kind == "ntk":
        return (base * factor ** (dim / (dim - 2))) ** -exponents, 1.0
    if kind == "dynamic_ntk":
        length = (position_ids[..., None] + 1).to(dtype).clamp(min=config.train_context_length)
        stretch = factor * length / config.train_context_length - (factor - 1)
        return base**-exponents * stretch ** (-exponents * dim / (dim - 2)), 1.0
    if kind == "yarn":
        slowed = _yarn_ramp(config, exponents)
        attention_factor = extension.get("attention_factor", 0.1 * math.log(factor) + 1.0)
        return base**-exponents * (1 - slowed + slowed / factor), attention_factor
    return base**-exponents, 1.0


def _yarn_ramp(config: Any, exponents: Tensor) -> Tensor:
    """Interpolated share of each pair, from 0 for fast pairs to 1 for slow ones; the ramp's ends round outwards."""

    def pair_of(num_turns: float) -> float:
        turned = config.train_context_length / (num_turns * 2 * math.pi)
        return config.head_dim * math.log(turned) / (2 * math.log(config.rope_theta))

    first = max(math.floor(pair_of(config.rope_extension.get("beta_fast", 32))), 0)
    last = min(math.ceil(pair_of(config.rope_extension.get("beta_slow", 1))), config.head_dim - 1)
    pairs = torch.arange(config.head_dim // 2, device=exponents.device, dtype=exponents.dtype)
    return ((pairs - first) / max(last - first, 1e-3)).clamp(0, 1)


def _rotate_half(states: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _check_extension(extension: dict[str, Any], head_dim: int) -> None:
    kind = extension.get("type")
    if kind not in ROPE_EXTENSION_KEYS:
        raise ValueError(f"rope_extension type must be one of {', '.join(ROPE_EXTENSION_KEYS)}, got {kind!r}")
    needed, optional = ROPE_EXTENSION_KEYS[kind]
    if not needed <= set(extension) <= needed | optional:
        also = f" and optionally {sorted(optional)}" if optional else ""
        raise ValueError(f"rope_extension of type {kind} takes the keys {sorted(needed)}{also}, got {extension}")
    for key in set(extension) - {"type"}:
        low, number = (1 if key == "factor" else 0), extension[key]
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not low <= number < math.inf or number == 0:
            expected = "a finite number of at least 1" if low else "a finite number above 0"
            raise ValueError(f"rope_extension {key} must be {expected}, got {number!r}")
    if extension.get("beta_fast", 32) <= extension.get("beta_slow", 1):
        raise ValueError(f"rope_extension beta_fast must be above beta_slow, got {extension}")
    if kind.endswith("ntk") and head_dim < 4:
        raise ValueError(f"rope_extension of type {kind} needs a head_dim of at least 4, got {head_dim}")
