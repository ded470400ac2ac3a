# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Interface of position methods, and shared helpers. Exported to the Hub.

Shapes: B batch (or 1 if all rows agree), H heads, Q queries, K keys, D hidden size, d head size.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class PositionMethod(nn.Module):
    """Base class of position methods. Used directly, it adds no position information.

    Attributes:
        reads_alibi_fields: Whether the method uses the ``alibi_*`` fields of the config.
        has_bias: Whether ``bias`` returns a tensor.
        bias_differs_by_layer: Whether each layer has its own bias.
        bias_is_of_distance: Whether the bias depends only on the distance between query and key.
        head_mesh: Under tensor parallelism, the device mesh over which heads are split.
        config_fields: Fields that a registered method adds to the config, with JSON default values.
    """

    config_fields: ClassVar[dict[str, Any]] = {}
    reads_alibi_fields: ClassVar[bool] = False
    has_bias: ClassVar[bool] = False
    bias_is_of_distance: ClassVar[bool] = False
    bias_differs_by_layer: bool = False
    head_mesh: Any | None = None

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Raise ValueError if this method does not support ``config``."""

    @classmethod
    def parameter_shapes(cls, config: Any) -> dict[str, tuple[int, ...]]:
        """Shapes of the module's parameters under ``config``, by name and in order."""
        return {}

    def init_weights(self) -> None:
        """Fill parameters and buffers from the config; also called for a model built on the meta device.

        transformers calls it only if the method has tensors of its own, not only those of submodules.
        """

    def check_positions(self, position_ids: Tensor) -> None:
        """Raise ValueError if the method ends before these positions; `generate` asks before each compiled step."""

    def embed(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        """Add position information to embeddings ``(B, Q, D)`` at positions ``(B, Q)``."""
        return inputs_embeds

    def rotate(self, query: Tensor, key: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate queries ``(B, H, Q, d)`` and keys ``(B, H_kv, Q, d)`` of one layer by their positions ``(B, Q)``."""
        return query, key

    def bias(
        self, layer_idx: int, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype
    ) -> Tensor | None:
        """Return the bias that a layer adds to its scaled scores before the softmax.

        Args:
            layer_idx: The layer, from 0.
            query_positions: ``(B, Q)`` int64, tokens.
            key_positions: ``(B, K)`` int64, tokens.
            dtype: float32, or float64 in a float64 model.

        Returns:
            ``(B, H, Q, K)`` of ``dtype``, nats; None if the method has no bias.
        """
        return None

    def query_slopes(self, layer_idx: int, query_positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return the slopes of queries at positions ``(B, Q)``, if the bias is ``-slope * distance``.

        Returns:
            ``(1 or B, 1 or Q, H)`` of ``dtype``, nats per token; None for any other bias.
        """
        return None

    def forward(
        self, layer_idx: int, query_positions: Tensor, key_positions: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """Return ``bias``, or ``query_slopes`` if ``key_positions`` is None.

        Attention gets both by calling the module, because libraries that offload or shard weights restore the
        parameters of a module when it is called. Parameters of ``embed`` and ``rotate`` belong in submodules.
        """
        if key_positions is None:
            return self.query_slopes(layer_idx, query_positions, dtype)
        return self.bias(layer_idx, query_positions, key_positions, dtype)


class LayerBias:
    """The bias of one layer, as the attention back ends request it."""

    def __init__(self, method: PositionMethod, layer_idx: int) -> None:
        self.method, self.layer_idx = method, layer_idx

    def dense(self, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype) -> Tensor:
        """Bias ``(B, H, Q, K)`` of ``dtype``, nats."""
        return self.method(self.layer_idx, query_positions, key_positions, dtype)

    def slopes(self, query_positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Slopes ``(1 or B, 1 or Q, H)``, nats per token, if the bias is ``-slope * distance``; else None."""
        return self.method(self.layer_idx, query_positions, None, dtype)

    def by_distance(self, num_distances: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """Bias ``(H, N)``, nats, at distances 0 to ``N - 1``; None if it depends on more than the distance."""
        if not self.method.bias_is_of_distance:
            return None
        keys = torch.arange(num_distances - 1, -1, -1, device=device)[None]
        return self.dense(keys[:, :1], keys, dtype)[0, :, 0]

    @property
    def tolerance(self) -> float:
        """Largest attention weight that may be left out per query."""
        return self.method.config.alibi_tolerance


class Float32Positions(PositionMethod):
    """Base class of methods whose parameters and buffers stay float32 when the model is cast to another dtype."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for name, shape in self.parameter_shapes(config).items():
            setattr(self, name, nn.Parameter(torch.empty(shape, dtype=torch.float32)))

    @property
    def _keep_in_fp32_modules_strict(self) -> list[str]:
        """Parameters that the model, and FSDP, keep in float32 when the rest is cast."""
        return [name for name, _ in self.named_parameters()]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float32Positions":
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)


def past_distance(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """Distance ``(B, Q, K)`` int64 from a query back to a key; 0 for future keys, which the mask hides."""
    return (query_positions[:, :, None] - key_positions[:, None, :]).clamp(min=0)


def wave_angles(position_ids: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Angles ``(B, Q, dim / 2)`` in radians: position times ``10000 ** (-2k / dim)``."""
    exponents = torch.arange(0, dim, 2, device=position_ids.device, dtype=dtype) / dim
    return position_ids[..., None].to(dtype) * 10000.0**-exponents


def bias_dtype(states: Tensor) -> torch.dtype:
    """Dtype of position computations: at least float32."""
    return torch.promote_types(states.dtype, torch.float32)
