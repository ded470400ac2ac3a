# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""What every position method answers, and what several of them share. Travels to the Hub.

Shapes: B batch (or 1, where all rows agree), H heads, Q queries, K keys, D hidden size, d head size.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class PositionMethod(nn.Module):
    """No position information, and the contract of those that have some.

    Attributes:
        reads_alibi_fields: Whether the ``alibi_*`` fields of the config decide anything.
        has_bias: Whether ``bias`` returns a tensor.
        bias_differs_by_layer: Whether every layer needs a bias of its own.
        bias_is_of_distance: Whether a bias depends on the distance between query and key alone.
        head_mesh: Under tensor parallelism, the ranks over which heads are split.
        config_fields: Fields that a registered method adds to the config, with their defaults; JSON values.
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
        """Raise a ValueError where this method cannot work with the sizes of ``config``."""

    @classmethod
    def parameter_shapes(cls, config: Any) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters that a module of this config has, by their names in it, in their order."""
        return {}

    def init_weights(self) -> None:
        """Fill parameters and buffers from the config; also called for a model that was built without memory."""

    def embed(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        """Embeddings ``(B, Q, D)`` of tokens at positions ``(B, Q)``, with what the method adds to them."""
        return inputs_embeds

    def rotate(self, query: Tensor, key: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Queries ``(B, H, Q, d)`` and keys ``(B, H_kv, Q, d)`` of one layer, turned by their positions ``(B, Q)``."""
        return query, key

    def bias(
        self, layer_idx: int, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype
    ) -> Tensor | None:
        """What a layer adds to its scaled scores before the softmax.

        Args:
            layer_idx: The layer, from 0.
            query_positions: ``(B, Q)`` int64, tokens.
            key_positions: ``(B, K)`` int64, tokens.
            dtype: float32, or float64 in a float64 model.

        Returns:
            ``(B, H, Q, K)`` of ``dtype``, nats; None where the method has no bias.
        """
        return None

    def query_slopes(self, layer_idx: int, query_positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Where a layer's bias is ``-slope * distance``: the slopes of queries at positions ``(B, Q)``.

        Returns:
            ``(1 or B, 1 or Q, H)`` of ``dtype``, nats per token; None where the bias is no such thing.
        """
        return None

    def forward(
        self, layer_idx: int, query_positions: Tensor, key_positions: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """``bias``; without positions of keys ``query_slopes``. Attention asks for both by calling the module.

        Libraries that offload or shard weights bring those of a module back when it is called, and a bias may have
        parameters of this very module. Parameters of ``embed`` and ``rotate`` belong in submodules, which are called.
        """
        if key_positions is None:
            return self.query_slopes(layer_idx, query_positions, dtype)
        return self.bias(layer_idx, query_positions, key_positions, dtype)


class LayerBias:
    """The bias of one layer, for attention to ask for."""

    def __init__(self, method: PositionMethod, layer_idx: int) -> None:
        self.method, self.layer_idx = method, layer_idx

    def dense(self, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype) -> Tensor:
        """``(B, H, Q, K)`` of ``dtype``, nats."""
        return self.method(self.layer_idx, query_positions, key_positions, dtype)

    def slopes(self, query_positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """``(1 or B, 1 or Q, H)``, nats per token, where the bias is ``-slope * distance``; else None."""
        return self.method(self.layer_idx, query_positions, None, dtype)

    def by_distance(self, num_distances: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """``(H, N)``, nats, of keys 0 to ``N - 1`` tokens behind their query; None where more than that decides."""
        if not self.method.bias_is_of_distance:
            return None
        keys = torch.arange(num_distances - 1, -1, -1, device=device)[None]
        return self.dense(keys[:, :1], keys, dtype)[0, :, 0]

    @property
    def tolerance(self) -> float:
        """Largest weight that a query may lose."""
        return self.method.config.alibi_tolerance


class Float32Positions(PositionMethod):
    """A method whose parameters and buffers stay float32 however its model comes to another dtype."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for name, shape in self.parameter_shapes(config).items():
            setattr(self, name, nn.Parameter(torch.empty(shape, dtype=torch.float32)))

    @property
    def _keep_in_fp32_modules_strict(self) -> list[str]:
        """What the model, and FSDP with it, keeps in float32 when the rest is cast."""
        return [name for name, _ in self.named_parameters()]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float32Positions":
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)


def past_distance(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """``(B, Q, K)`` int64: distance of a key behind its query; 0 for keys ahead, which the mask hides."""
    return (query_positions[:, :, None] - key_positions[:, None, :]).clamp(min=0)


def wave_angles(position_ids: Tensor, dim: int, base: float, dtype: torch.dtype) -> Tensor:
    """``(B, Q, dim / 2)``: position times ``base ** (-2k / dim)``, radians."""
    exponents = torch.arange(0, dim, 2, device=position_ids.device, dtype=dtype) / dim
    return position_ids[..., None].to(dtype) * base**-exponents


def bias_dtype(states: Tensor) -> torch.dtype:
    """What positions are computed in: at least float32."""
    return torch.promote_types(states.dtype, torch.float32)
