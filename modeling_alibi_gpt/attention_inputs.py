# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""The arguments of a forward call that determine positions and visibility. Exported to the Hub.

Shapes: B batch, H heads, Q queries, K keys, D hidden size.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.utils import is_tracing


class ForwardInputs(NamedTuple):
    """The arguments as the model received them.

    Attributes:
        config: Config of the model.
        inputs_embeds: ``(B, Q, D)``.
        attention_mask: ``(1 or B, K)``, 1 where a token is visible; or ``(1 or B, 1 or H, Q, K)``; or None.
        position_ids: ``(1 or B, Q)``, tokens, or None.
        cache: The cache before this call, or None; under continuous batching, the pages of all requests.
        may_skip_mask: Whether plain causal attention may omit the mask.
    """

    config: PreTrainedConfig
    inputs_embeds: Tensor
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    cache: Cache | PagedAttentionCache | None = None
    may_skip_mask: bool = False

    def simplified(self, kwargs: dict[str, Any]) -> "ForwardInputs":
        """Inputs with a bool padding mask of all rows, or none if it hides nothing, and without an empty cache.

        A padding mask may reach beyond the tokens of this call, as where a text is read in chunks. Except for a static
        cache, which takes it whole, the rest is dropped.

        transformers detects packed documents only without a mask and a cache. Documents given by ``cu_seq_lens_q``
        without positions, as FlashAttention takes them, become positions.

        Args:
            kwargs: Other keyword arguments of the model.

        Raises:
            ValueError: The mask is neither a padding mask ``(1 or B, K)`` nor a bool or float one of shape
                ``(1 or B, 1 or H, Q, K)``; positions are not ``(1 or B, Q)``; a padding mask hides tokens and is
                shorter than the cached and new ones; or ``cu_seq_lens_q`` without positions comes with such a mask or
                a 4D one, with earlier text, or with a static cache.
        """
        mask, positions, cache = self.attention_mask, self.position_ids, self.cache
        num_rows, q_len = self.inputs_embeds.shape[:2]
        if _is_empty(cache, q_len):
            cache = None
        if positions is not None and (positions.ndim != 2 or positions.shape not in ((1, q_len), (num_rows, q_len))):
            raise ValueError(
                f"position_ids: expected shape (1 or {num_rows}, {q_len}), for every token of the batch, got "
                f"{tuple(positions.shape)}"
            )
        if mask is not None:
            _check_mask(mask, num_rows)
            mask = mask.bool().expand(num_rows, -1) if mask.ndim == 2 else mask
            # The number of tokens in a static cache is on its device.
            if mask.ndim == 2 and (cache is None or not cache.is_compileable):
                mask = _mask_of_tokens(mask, q_len if cache is None else cache.get_query_offset() + q_len)
        if _masks_nothing(mask):
            mask = None
        starts = kwargs.get("cu_seq_lens_q")
        if starts is not None and positions is None:
            if mask is not None or cache is not None:
                raise ValueError(
                    "cu_seq_lens_q without position_ids: expected no attention_mask that hides tokens and no cache "
                    f"that is static or holds text, got {'such a mask' if cache is None else 'such a cache'}"
                )
            places = places_in_sequences(starts, num_rows * q_len, self.inputs_embeds.device)
            positions = places.view(num_rows, q_len)
        return self._replace(attention_mask=mask, position_ids=positions, cache=cache)

    def slots(self) -> tuple[Tensor, Tensor, bool]:
        """Cache slots ``(Q,)`` and ``(K,)``, and whether the keys are exactly the slots up to the last query's."""
        q_len, device = self.inputs_embeds.shape[1], self.inputs_embeds.device
        q_offset, kv_offset = 0, 0
        kv_len = q_len if self.attention_mask is None else self.attention_mask.shape[-1]
        if self.cache is not None:
            q_offset = self.cache.get_query_offset()
            kv_len, kv_offset = self.cache.get_mask_sizes(q_len, 0)
        # A static cache updates its counter tensor in place; the addition makes a copy.
        query_slots = torch.arange(q_len, device=device) + q_offset
        key_slots = torch.arange(kv_len, device=device) + kv_offset
        # In a fixed-size cache, or one that dropped its first tokens, the keys do not end with the last query's.
        is_aligned = isinstance(q_offset, int) and (kv_offset, kv_len) == (0, q_offset + q_len)
        return query_slots, key_slots, is_aligned


def attention_dtype(states: Tensor) -> torch.dtype:
    """Dtype in which attention computes: that of the states, or under autocast its dtype, unless they are float64.

    Under autocast, norms on a GPU and quantized layers return float32. Masks, caches and augmented keys are made for
    one dtype.
    """
    device_type = states.device.type
    is_cast = torch.is_autocast_enabled(device_type) and states.dtype != torch.float64
    return torch.get_autocast_dtype(device_type) if is_cast else states.dtype


def places_in_sequences(starts: Tensor, num_tokens: int, device: torch.device) -> Tensor:
    """Index ``(num_tokens,)`` int64 of each token within its sequence.

    Args:
        starts: ``(N + 1,)``, first token of each of N consecutive sequences, then the end of the last.
        num_tokens: Number of tokens.
        device: Device of the result.
    """
    tokens, starts = torch.arange(num_tokens, device=device), starts.to(device, torch.int64)
    sequence = torch.searchsorted(starts[1:], tokens, right=True).clamp(max=starts.shape[0] - 2)
    return tokens - starts[sequence]


def _check_mask(mask: Any, num_rows: int) -> None:
    is_tensor = isinstance(mask, Tensor)
    is_4d_mask = is_tensor and mask.ndim == 4 and (mask.dtype == torch.bool or mask.is_floating_point())
    if not is_4d_mask and not (is_tensor and mask.ndim == 2):
        got = f"{mask.dtype} of shape {tuple(mask.shape)}" if is_tensor else type(mask).__name__
        raise ValueError(
            "attention_mask: expected a padding mask (batch, keys), or a bool or additive float mask (batch, "
            f"1 or heads, queries, keys), got {got}"
        )
    if mask.shape[0] not in (1, num_rows):
        raise ValueError(
            f"attention_mask: expected one row, or {num_rows} as in the batch of tokens, got {mask.shape[0]}"
        )


def _mask_of_tokens(padding_mask: Tensor, num_tokens: int) -> Tensor:
    """The part of a padding mask that is about the cached and new tokens. One that hides nothing may be shorter."""
    if padding_mask.shape[1] < num_tokens and not _masks_nothing(padding_mask):
        raise ValueError(
            f"attention_mask: expected {num_tokens} columns, one for each cached and new token, got "
            f"{padding_mask.shape[1]}"
        )
    return padding_mask[:, :num_tokens]


def _masks_nothing(attention_mask: Tensor | None) -> bool:
    """Whether a padding mask is all ones."""
    if attention_mask is None or attention_mask.ndim != 2 or is_tracing(attention_mask):
        return False
    return bool(attention_mask.all())


def _is_empty(cache: Cache | None, q_len: int) -> bool:
    """Whether a growing cache is still empty."""
    return cache is not None and not cache.is_compileable and cache.get_mask_sizes(q_len, 0) == (q_len, 0)
