# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Position methods by name, and registration of further ones. Exported to the Hub.

A method implements up to three hooks, each with a neutral default: ``embed`` changes the embeddings once, ``rotate``
changes queries and keys in every layer, and ``bias`` is added to the scores. To add a method here, write one class, a
line in ``POSITION_METHODS`` and a row in its test. Other packages call :func:`register_position_method`.

Shapes: B batch (or 1 if all rows agree), H heads, Q queries, K keys, D hidden size, d head size.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from .position_alibi import AlibiPositions
from .position_base import PositionMethod, bias_dtype, wave_angles
from .position_biases import (
    FirePositions,
    KerplePositions,
    SandwichPositions,
    SharedOffsetPositions,
    T5Positions,
)
from .position_rope import RotaryPositions


class SinusoidalPositions(PositionMethod):
    """Fixed sines and cosines added to the embeddings (Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

    The paper adds waves of amplitude 1 to embeddings of standard deviation 1 (it multiplies them by ``sqrt(D)``). Here
    embeddings have standard deviation ``initializer_range``, so ``sinusoidal_amplitude`` defaults to it, which keeps
    the ratio of the paper.
    """

    @classmethod
    def check_config(cls, config: Any) -> None:
        if config.hidden_size % 2:
            raise ValueError(f"sinusoidal positions need an even hidden_size, got {config.hidden_size}")
        amplitude = config.sinusoidal_amplitude
        if amplitude is not None and not 0 < amplitude < math.inf:
            raise ValueError(f"sinusoidal_amplitude must be a finite number above 0 or null, got {amplitude}")

    def embed(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        angles = wave_angles(position_ids, inputs_embeds.shape[-1], bias_dtype(inputs_embeds))
        amplitude = self.config.sinusoidal_amplitude
        amplitude = self.config.initializer_range if amplitude is None else amplitude
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1) * amplitude
        return inputs_embeds + waves.to(inputs_embeds.dtype)


class LearnedPositions(PositionMethod):
    """A learned vector for each position up to ``train_context_length``, the maximum text length (as in GPT-2)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.train_context_length, config.hidden_size)

    @classmethod
    def parameter_shapes(cls, config: Any) -> dict[str, tuple[int, ...]]:
        return {"embedding.weight": (config.train_context_length, config.hidden_size)}

    def check_positions(self, position_ids: Tensor) -> None:
        num_positions = self.embedding.num_embeddings
        if (longest := int(position_ids.max()) + 1) > num_positions:
            raise ValueError(
                f"learned positions end at train_context_length = {num_positions} tokens, got a text of {longest}: "
                "truncate it, or use a position_method that extrapolates, such as alibi"
            )

    def embed(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.check_positions(position_ids)
        return inputs_embeds + self.embedding(position_ids).to(inputs_embeds.dtype)


POSITION_METHODS: dict[str, type[PositionMethod]] = {
    "alibi": AlibiPositions,
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
    "rope": RotaryPositions,
    "t5": T5Positions,
    "shared_offset": SharedOffsetPositions,
    "kerple": KerplePositions,
    "fire": FirePositions,
    "sandwich": SandwichPositions,
    "none": PositionMethod,
}
_BUILT_IN = frozenset(POSITION_METHODS)


def register_position_method(name: str, method: type[PositionMethod]) -> None:
    """Register a class for ``AlibiGPTConfig(position_method=name)``.

    Its ``config_fields`` become fields of such configs and are saved with them. Its ``check_config`` validates them.
    A saved config names the module of the class, which must be imported before the config is loaded.

    Args:
        name: An unused name, or the name of the same class, so that a notebook cell can be rerun.
        method: The class.

    Raises:
        ValueError: The name is taken, the class is no :class:`PositionMethod`, or a field name is not public.
    """
    if not (isinstance(method, type) and issubclass(method, PositionMethod)):
        raise ValueError(f"a position method must be a subclass of PositionMethod, got {method!r}")
    known = POSITION_METHODS.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (method.__module__, method.__qualname__):
        raise ValueError(f"position_method {name!r} is already registered by {known.__module__}.{known.__qualname__}")
    if private := [field for field in method.config_fields if not field.isidentifier() or field.startswith("_")]:
        raise ValueError(f"config_fields must be public names, got {', '.join(map(repr, private))}")
    POSITION_METHODS[name] = method


def plugin_of(name: str) -> str | None:
    """Module of a registered position method; None for built-in and unknown methods."""
    return None if name in _BUILT_IN or name not in POSITION_METHODS else POSITION_METHODS[name].__module__


def plugin_fields(name: str, plugin: str | None, config_class: type) -> dict[str, Any]:
    """Fields that a position method adds to its configs, with their defaults.

    Args:
        name: Name of the method.
        plugin: Module that registers it according to the config, or None. It is never imported here.
        config_class: Class whose attributes the fields must not hide.

    Raises:
        ValueError: The method is unknown and has a plugin, or a field hides an attribute.
    """
    if name not in POSITION_METHODS and plugin is not None:
        raise ValueError(
            f"position_method {name!r} is registered by the module {plugin!r}: import it before loading this config, "
            "or list it under 'plugins' in the settings of a command that has them; loading a checkpoint never "
            "imports it, and export and convert cannot write its code"
        )
    fields = POSITION_METHODS.get(name, PositionMethod).config_fields
    if hidden := [field for field in fields if hasattr(config_class, field)]:
        raise ValueError(f"config_fields of {name!r} hide attributes of {config_class.__name__}: {', '.join(hidden)}")
    return copy.deepcopy(fields)
