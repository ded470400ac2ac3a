# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""A bounded cache in which each head keeps only the keys and values it can still need. Exported to the Hub.

Heads with steep slopes attend to a few dozen tokens, heads with flat slopes to thousands. Given a bound on score
differences, :func:`~modeling_alibi_gpt.alibi.alibi_windows` computes the window of each head. Older keys are dropped,
so generation runs in constant memory at any text length.

Shapes: B batch, G key/value heads per group, K cached keys, d head size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from .alibi import alibi_windows
from .attention_banded import score_margins, similar_heads
from .attention_windows import WindowedStates


# Half precision rounds a norm's output once more: in bfloat16, by up to 2**-9 relative for each factor of a product.
_ROUNDING = 1 + 2**-7
# Spare capacity of a buffer for new tokens: its size divided by _SPARE_PART, but at least _MIN_SPARE_TOKENS.
_SPARE_PART = 8
_MIN_SPARE_TOKENS = 64


class AlibiWindowLayer(CacheLayerMixin):
    """Keys and values of one layer.

    Args:
        windows: For each key/value head, the number of most recent tokens that a query must see, at least 1.
    """

    def __init__(self, windows: Sequence[int]) -> None:
        super().__init__()
        self.cumulative_length = 0
        windows = [max(1, window) for window in windows]
        self.num_heads = len(windows)
        heads = similar_heads(windows)
        self.groups = [_Group(max(windows[group]), group) for group in heads]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor | WindowedStates, Tensor | WindowedStates]:
        """Add the keys and values ``(B, H_kv, Q, d)`` of new tokens.

        Returns:
            Keys and values for the new queries: the arguments on the first call, ``WindowedStates`` afterwards.

        Raises:
            ValueError: H_kv is not the number of windows.
        """
        if key_states.shape[1] != self.num_heads:
            raise ValueError(
                f"AlibiWindowCache has windows for {self.num_heads} key/value heads, got keys of {key_states.shape[1]}"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        is_first = self.cumulative_length == 0
        self.cumulative_length += key_states.shape[2]
        for group in self.groups:
            group.append(key_states[:, group.heads], value_states[:, group.heads])
        if is_first:
            return key_states, value_states
        heads = tuple(group.heads for group in self.groups)
        keys, values = zip(*(group.last(key_states.shape[2]) for group in self.groups), strict=True)
        return WindowedStates(heads, keys), WindowedStates(heads, values)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cumulative_length + query_length, 0

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.cumulative_length = 0
        for group in self.groups:
            group.clear()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._map(lambda states: states.index_select(1, indices.to(states.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map(lambda states: states.repeat_interleave(repeats, dim=1))

    def offload(self) -> None:
        self._map(lambda states: states.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        self._map(lambda states: states.to(self.device, non_blocking=True))

    def crop(self, tokens_to_remove: int) -> None:
        """Unsupported, because the tokens dropped since then cannot be restored. Raises ValueError."""
        if tokens_to_remove != 0:
            raise ValueError("AlibiWindowCache cannot remove tokens; use a DynamicCache for assisted generation")

    @property
    def num_bytes(self) -> int:
        """Size of all buffers in bytes."""
        return sum(group.storage.nbytes for group in self.groups if group.storage is not None)

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        for group in self.groups:
            if group.storage is not None:
                group.storage = change(group.storage)


class _Group:
    """Heads with similar windows. Their buffer ``(2, B, G, capacity, d)`` of keys and values is replaced when full."""

    def __init__(self, window: int, heads: slice) -> None:
        self.window, self.heads = window, heads
        self.clear()

    def clear(self) -> None:
        self.storage: Tensor | None = None
        self.stop = 0

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add new tokens and drop those that neither they nor later tokens can need."""
        num_new = keys.shape[2]
        num_old = min(self.stop, self.window - 1)
        if self.storage is None:
            # The prompt attends to itself in full; later tokens need only its last window.
            num_new = min(num_new, self.window)
            keys, values = keys[:, :, -num_new:], values[:, :, -num_new:]
        if self.storage is None or self.stop + num_new > self.storage.shape[3]:
            size = num_old + num_new
            shape = (2, *keys.shape[:2], size + max(size // _SPARE_PART, _MIN_SPARE_TOKENS), keys.shape[3])
            moved = keys.new_empty(shape)
            if num_old:
                moved[:, :, :, :num_old] = self.storage[:, :, :, self.stop - num_old : self.stop]
            self.storage, self.stop = moved, num_old
        new = slice(self.stop, self.stop + num_new)
        self.storage[0, :, :, new], self.storage[1, :, :, new] = keys, values
        self.stop = new.stop

    def last(self, num_queries: int) -> Tensor:
        """Keys and values ``(2, B, G, K, d)`` that the last ``num_queries`` tokens can need."""
        start = max(0, self.stop - (self.window - 1 + num_queries))
        return self.storage[:, :, :, start : self.stop]


class AlibiWindowCache(Cache):
    """Bounded cache for ``generate(past_key_values=...)`` with ``attn_implementation="alibi_banded"``.

    Args:
        windows: For each layer and key/value head, the number of most recent tokens that a query must see.
    """

    keeps_windows = True

    def __init__(self, windows: Sequence[Sequence[int]]) -> None:
        super().__init__(layers=[AlibiWindowLayer(layer) for layer in windows])

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """See ``AlibiWindowLayer.update``. Raises ValueError, too, if there are no windows for the layer."""
        if layer_idx >= len(self.layers):
            raise ValueError(
                f"AlibiWindowCache has windows for {len(self.layers)} layers, got keys of layer {layer_idx + 1}"
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    @classmethod
    def from_margins(cls, model: PreTrainedModel, margins: Tensor) -> "AlibiWindowCache":
        """Windows that are valid while no key's score exceeds that of the query's own key by more than ``margins``.

        Args:
            model: An AlibiGPT with ALiBi and one slope per head.
            margins: ``(layers, H)``, nats.

        Raises:
            ValueError: The model does not use ALiBi with one slope per head.
        """
        config = model.config
        layer_slopes = slopes_of_layers(model)
        windows = torch.stack(
            [alibi_windows(*layer, config.alibi_tolerance) for layer in zip(layer_slopes, margins, strict=True)]
        )
        # Query heads that share a key head need the longest of their windows.
        return cls(windows.unflatten(1, (config.num_key_value_heads, -1)).amax(-1).tolist())

    @classmethod
    def from_qk_norm(cls, model: PreTrainedModel) -> "AlibiWindowCache":
        """Windows that are valid for any text, from the bound that ``qk_norm`` puts on scores.

        The norm of an RMSNorm's output is at most ``sqrt(d)`` times its largest weight, so two scores of a query
        differ by at most ``2 * scaling * d * max |w_q| * max |w_k|``.

        Raises:
            ValueError: The model has no ``qk_norm``, or does not use ALiBi with one slope per head.
        """
        config = model.config
        if not config.qk_norm:
            raise ValueError(
                "AlibiWindowCache.from_qk_norm needs a model with qk_norm: use AlibiWindowCache.from_text to measure "
                "scores on your text"
            )
        margins = [
            2 * config.scaling * config.head_dim * _ROUNDING * _largest(layer.q_norm) * _largest(layer.k_norm)
            for layer in _attention_layers(model)
        ]
        return cls.from_margins(model, torch.tensor(margins)[:, None].expand(-1, config.num_attention_heads))

    @classmethod
    def from_text(cls, model: PreTrainedModel, input_ids: Tensor, safety_factor: float = 1.5) -> "AlibiWindowCache":
        """Windows from scores measured on a text. Another text may exceed the measured bound.

        Args:
            model: An AlibiGPT with ALiBi and one slope per head.
            input_ids: ``(B, T)``; should resemble later texts and be as long as possible.
            safety_factor: Factor of the largest measured margins, at least 1.

        Raises:
            ValueError: The factor is below 1, or the model does not use ALiBi with one slope per head.
        """
        if not safety_factor >= 1:
            raise ValueError(f"safety_factor must be at least 1, got {safety_factor}")
        return cls.from_margins(model, safety_factor * measured_margins(model, input_ids).clamp(min=0))

    @property
    def num_bytes(self) -> int:
        """Size of all buffers in bytes."""
        return sum(layer.num_bytes for layer in self.layers)


@torch.no_grad()
def measured_margins(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Measure the largest margin of each head on a text; see ``score_margins``.

    Args:
        model: An AlibiGPT with ALiBi and one slope per head.
        input_ids: ``(B, T)``.

    Returns:
        ``(layers, H)`` float32, nats.

    Raises:
        ValueError: The model does not use ALiBi with one slope per head.
    """
    slopes, layers, margins = slopes_of_layers(model), _attention_layers(model), []

    def measure(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        query, key, _ = module.project(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])
        key = key.repeat_interleave(module.num_key_value_groups, dim=1)
        of_layer = slopes[module.layer_idx]
        found = score_margins(query, key, of_layer.to(query.device), module.scaling)
        margins.append(found.to(of_layer.device))  # layers may be on several devices

    hooks = [layer.register_forward_pre_hook(measure, with_kwargs=True) for layer in layers]
    try:
        model.get_decoder()(input_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(margins)


def _attention_layers(model: PreTrainedModel) -> list[nn.Module]:
    return [layer.self_attn for layer in model.get_decoder().layers]


@torch.no_grad()
def slopes_of_layers(model: PreTrainedModel) -> list[Tensor]:
    """Slopes ``(H,)`` of each layer, nats per token.

    Raises:
        ValueError: The model does not use ALiBi with one slope per head.
    """
    config, method = model.config, getattr(model.get_decoder(), "position_method", None)
    position = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    slopes = [method and method(idx, position, None, torch.float32) for idx in range(config.num_hidden_layers)]
    scaling = getattr(config, "alibi_scaling", None)
    if any(layer is None for layer in slopes) or (scaling is not None and scaling["type"].startswith("dynamic")):
        raise ValueError(
            "expected ALiBi with one slope per head: position_method 'alibi' without dynamic alibi_scaling, got "
            f"{getattr(config, 'position_method', config.model_type)!r} and {scaling}"
        )
    return [layer[0, 0] for layer in slopes]


def _largest(norm: nn.Module) -> float:
    return norm.weight.abs().max().item()


__all__ = ["AlibiWindowCache"]
