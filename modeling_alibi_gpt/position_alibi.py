# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""ALiBi as a position method: fixed or trained slopes, and validation of its fields. Exported to the Hub.

Shapes: B batch (or 1 if all rows agree), H heads, Q queries, K keys.
"""

import copy
import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .alibi import SLOPE_KINDS, alibi_slopes, check_slopes, scale_slopes
from .position_base import Float32Positions
from .tensor_parallel import heads_of_rank


ALIBI_TRAINABLE = ("none", "beta", "slopes")
ALIBI_SCALING_TYPES = ("linear", "ntk", "dynamic_linear", "dynamic_ntk")

# By ``alibi_trainable``, the fields that a checkpoint with trained slopes stores as weights instead.
FIELDS_IN_WEIGHTS = {
    "none": (),
    "beta": ("alibi_beta",),
    "slopes": ("alibi_beta", "alibi_slope_kind", "alibi_slopes", "alibi_bias_max"),
}
# The fields that a model reads only when it makes its slopes.
SLOPE_FIELDS = ("alibi_trainable", *FIELDS_IN_WEIGHTS["slopes"])


class AlibiPositions(Float32Positions):
    """ALiBi: a distance penalty with one slope per head (Press et al. 2022, arXiv:2108.12409, section 3).

    Slopes stay float32 in a model of any dtype. For most head counts they are not powers of two, and bfloat16 would
    round them by up to 0.4 %. Training updates their logarithms, so slopes stay positive. The parameter names contain
    ``bias``, which Trainer excludes from weight decay; decay would pull beta towards 1.

    Attributes:
        made_from: The fields of the config from which the slopes were made. A config with others is refused.
    """

    reads_alibi_fields = True
    has_bias = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.trainable = config.alibi_trainable
        self.bias_differs_by_layer = self.trainable != "none"
        self.slopes = nn.Buffer(torch.empty(config.num_attention_heads, dtype=torch.float32), persistent=False)
        self.init_weights()

    @classmethod
    def check_config(cls, config: Any) -> None:
        for name in ("alibi_beta", "alibi_bias_max"):
            if not 0 < getattr(config, name) < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, got {getattr(config, name)!r}")
        _check_slope_fields(config)
        if config.alibi_trainable not in ALIBI_TRAINABLE:
            raise ValueError(
                f"alibi_trainable must be one of {', '.join(ALIBI_TRAINABLE)}, got {config.alibi_trainable!r}"
            )
        if not 0 < config.alibi_tolerance < 1:
            raise ValueError(f"alibi_tolerance must be between 0 and 1, got {config.alibi_tolerance}")
        if config.alibi_scaling is not None:
            _check_scaling(config)

    @classmethod
    def parameter_shapes(cls, config: Any) -> dict[str, tuple[int, ...]]:
        if config.alibi_trainable == "beta":
            return {"bias_log_beta": (config.num_hidden_layers,)}
        if config.alibi_trainable == "slopes":
            return {"bias_log_slopes": (config.num_hidden_layers, config.num_attention_heads)}
        return {}

    def init_weights(self) -> None:
        config = self.config
        multipliers = alibi_slopes(
            config.num_attention_heads,
            kind=config.alibi_slope_kind,
            bias_max=config.alibi_bias_max,
            custom=config.alibi_slopes,
        )
        slopes, self.made_from = config.base_alibi_slopes(), slope_fields(config)
        if self.trainable == "beta":
            init.copy_(self.slopes, multipliers)
            # The default dtype is that of the rest of the model.
            beta = torch.tensor(config.alibi_beta, dtype=torch.float32)
            init.copy_(self.bias_log_beta, beta.log().expand_as(self.bias_log_beta))
        else:
            init.copy_(self.slopes, slopes)
        if self.trainable == "slopes":
            init.copy_(self.bias_log_slopes, slopes.log().expand_as(self.bias_log_slopes))

    def layer_slopes(self, layer_idx: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Slopes ``(H,)`` of one layer before ``alibi_scaling``, nats per token; differentiable if trained.

        Raises:
            ValueError: The config has changed since the slopes were made. A compiled model does not check it.
        """
        if not torch.compiler.is_compiling():  # it would compile again for every beta of a schedule
            refuse_changed_fields(self.config, self.made_from)
        if self.trainable == "beta":
            return self.slopes.to(dtype) * self.bias_log_beta[layer_idx].to(dtype).exp()
        if self.trainable == "slopes":
            return self.bias_log_slopes[layer_idx].to(dtype).exp()
        return self.slopes.to(dtype)

    def query_slopes(self, layer_idx: int, query_positions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Effective slopes per query, nats per token: ``(1, 1, H)``, or ``(B, Q, H)`` with dynamic scaling.

        The dynamic factor of a query is the number of tokens up to and including it divided by the training length.
        It does not depend on the call, so chunking and caching do not change results.

        Under tensor parallelism, H counts the heads of this rank.
        """
        slopes = self.layer_slopes(layer_idx, dtype)[None, None, :]
        if (scaling := self.config.alibi_scaling) is not None:
            kind, factor = scaling["type"], scaling.get("factor")
            if kind.startswith("dynamic_"):
                kind = kind.removeprefix("dynamic_")
                factor = ((query_positions[..., None] + 1).to(dtype) / self.config.train_context_length).clamp(min=1.0)
            slopes = scale_slopes(slopes, kind, factor)
        if self.config.alibi_bias_inside_scaling:
            slopes = slopes * self.config.scaling
        return heads_of_rank(slopes, self.head_mesh)

    def bias(self, layer_idx: int, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype) -> Tensor:
        slopes = self.query_slopes(layer_idx, query_positions, dtype).transpose(1, 2)[..., None]  # (B, H, Q or 1, 1)
        # Subtract before rounding: float32 represents positions exactly only up to 2**24.
        distance = (query_positions[:, :, None] - key_positions[:, None, :]).abs().to(dtype)
        return -slopes * distance[:, None]


def slope_fields(config: Any) -> dict[str, Any]:
    """The fields of a config from which slopes are made, and what is trained."""
    return {name: copy.copy(getattr(config, name)) for name in SLOPE_FIELDS}


def refuse_changed_fields(config: Any, made_from: dict[str, Any]) -> None:
    """Raise a ValueError if a config has other fields than those that the slopes of its model were made from."""
    for name, value in made_from.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"config.{name} has no effect on a model that exists: expected {value!r}, from which its slopes were "
                f"made, got {getattr(config, name)!r}; pass {name} to from_pretrained, or change a fixed beta with "
                "set_alibi_beta of modeling_alibi_gpt.training.beta_schedule"
            )


def refuse_changed_config(config: Any, modules: Iterable[nn.Module]) -> None:
    """Raise a ValueError if the ALiBi among the modules of a model does not compute what the config says."""
    for module in modules:
        if isinstance(module, AlibiPositions):
            refuse_changed_fields(config, module.made_from)


def check_not_in_weights(fields: Collection[str], trainable: str, where: str = "") -> None:
    """Raise a ValueError if one of the fields, set for a checkpoint, has been replaced by trained weights.

    Args:
        fields: Names of config fields.
        trainable: ``alibi_trainable`` of the checkpoint.
        where: Prefix of a field in the user's settings, for the message.
    """
    for name in FIELDS_IN_WEIGHTS[trainable]:
        if name in fields:
            raise ValueError(
                f"{where}{name} has no effect: the checkpoint stores it as weights (alibi_trainable {trainable})"
            )


def check_stays_learned(saved: str, trainable: str, fields: Collection[str]) -> None:
    """Raise a ValueError if loading with another ``alibi_trainable`` would drop values that the checkpoint learned.

    Args:
        saved: ``alibi_trainable`` of the checkpoint.
        trainable: ``alibi_trainable`` to load it with.
        fields: Names of the config fields that are set on loading. One that the values replaced says where to start.
    """
    if saved not in ("none", trainable) and not set(FIELDS_IN_WEIGHTS[saved]) & set(fields):
        raise ValueError(
            f"alibi_trainable {trainable!r} would reset what the checkpoint learned with {saved!r}: load it as it is"
        )


def missing_weights(config: Any, names: Collection[str]) -> set[str]:
    """The weights that a checkpoint should have, of those that it lacks: slopes that learn from here on are not.

    Raises:
        ValueError: A field was set, on loading or since then, that the checkpoint stores as weights.
    """
    if getattr(config, "_learns_from_here", False):
        return {name for name in names if ".bias_log_" not in name}
    if not any(".bias_log_" in name for name in names):
        check_not_in_weights(_chosen_fields(config), config.alibi_trainable)
    return set(names)


def refuse_dropped_weights(config: Any, names: Collection[str]) -> None:
    """Raise a ValueError if what a checkpoint learned is among the weights for which the model has no place.

    Args:
        config: Config of the model, which uses ALiBi.
        names: Names of the weights without a place.
    """
    for kind in ALIBI_TRAINABLE:
        if any(name.endswith(f"position_method.bias_log_{kind}") for name in names):
            check_stays_learned(kind, config.alibi_trainable, _chosen_fields(config))


def _chosen_fields(config: Any) -> set[str]:
    """Fields that were set while a config was loaded, and those that decide on slopes and were changed since then."""
    loaded = getattr(config, "_as_loaded", {})
    changed = {name for name, value in loaded.items() if getattr(config, name) != value}
    return changed | set(getattr(config, "_set_on_loading", ()))


def _check_slope_fields(config: Any) -> None:
    kind, custom = config.alibi_slope_kind, config.alibi_slopes
    if kind not in SLOPE_KINDS:
        raise ValueError(f"alibi_slope_kind must be one of {', '.join(SLOPE_KINDS)}, got {kind!r}")
    if (custom is not None) != (kind == "custom"):
        raise ValueError(f"alibi_slopes and alibi_slope_kind 'custom' require each other, got {custom} and {kind!r}")
    numbers = {"beta": config.alibi_beta, "bias_max": config.alibi_bias_max}
    try:
        check_slopes(config.num_attention_heads, kind=kind, custom=custom, **numbers)
    except ValueError as error:
        raise ValueError(f"alibi_slopes: {error}") from error


def _check_scaling(config: Any) -> None:
    """Check the type of ``alibi_scaling`` and its keys."""
    kind = config.alibi_scaling.get("type")
    if kind not in ALIBI_SCALING_TYPES:
        raise ValueError(f"alibi_scaling type must be one of {', '.join(ALIBI_SCALING_TYPES)}, got {kind!r}")
    expected = {"type"} if kind.startswith("dynamic_") else {"type", "factor"}
    if set(config.alibi_scaling) != expected:
        raise ValueError(f"alibi_scaling of type {kind} takes the keys {sorted(expected)}, got {config.alibi_scaling}")
    factor = config.alibi_scaling.get("factor", 1.0)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor < math.inf:
        raise ValueError(f"alibi_scaling factor must be a finite number of at least 1, got {factor!r}")
    if kind.endswith("ntk") and not _has_different_slopes(config):
        raise ValueError("alibi_scaling of an ntk type needs at least two different slopes: use a linear type")


def _has_different_slopes(config: Any) -> bool:
    if config.alibi_slope_kind == "custom":
        return len(set(config.alibi_slopes)) > 1
    return config.alibi_slope_kind == "geometric" and config.num_attention_heads > 1
