# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Registry of attention back ends and of how each applies a position bias. Exported to the Hub.

Before the layers run, the back end combines visibility and position bias into the mask argument of its attention
function. That is either one additive tensor, or an object that computes attention itself without materializing the
bias.

Shapes: B batch (or 1 if all rows agree), H heads, Q queries, K keys, d head size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_tracing

from .attention_augmented import AugmentedAttention
from .attention_banded import BandedAttention
from .attention_bounds import exact_tolerance
from .attention_context import AttentionContext
from .attention_flash import FlashAttention
from .attention_flex import FlexAttention
from .attention_folded import FoldedAttention, hide_far
from .attention_fused import FusedAttention, can_fuse
from .attention_strips import StripAttention
from .position_base import LayerBias


# Below these sizes the folded mask, which is built once for all layers, is faster on two CPU cores.
MIN_LONG_PAIRS = 512 * 512
MIN_LONG_QUERIES = 32


class BiasedAttention(Protocol):
    """Visibility and bias of a layer, with the attention function that applies them."""

    def attend(self, query: Tensor, key: Any, value: Any, scaling: float, dropout: float) -> Tensor:
        """Return ``(B, H, Q, d)`` for queries of this shape and for keys and values ``(B, H or H_kv, K, d)``."""


LayerMask = Tensor | BiasedAttention | None


def folded_mask(context: AttentionContext, bias: LayerBias | None) -> Tensor | None:
    """Fold the position bias into the mask, for any dense attention function.

    The bias is computed from relative distances in float32 (float64 in a float64 model) and cast afterwards.
    Products of slopes and absolute positions would collide in bfloat16.

    Args:
        context: Mask and positions.
        bias: Bias of the layer, or None.

    Returns:
        Additive mask ``(B, H, Q, K)`` of the attention dtype; the unchanged mask if there is no bias.
    """
    mask = context.mask()
    if bias is None:
        return mask
    if mask is None:
        raise ValueError("a position bias needs an explicit attention mask, got None")
    score = bias.dense(context.query_positions, context.key_positions, context.bias_dtype)
    is_visible = mask
    if mask.dtype != torch.bool:
        is_visible = mask > torch.finfo(mask.dtype).min
        score = score + mask
    if context.slots is None and context.dtype == torch.float16:
        # A query may see distant keys only. Below the range of float16 they would weigh less than hidden keys.
        score = score - torch.where(is_visible, score.detach(), -torch.inf).amax(-1, keepdim=True)
    return torch.where(is_visible, score, torch.finfo(context.dtype).min).to(context.dtype)


def prepare_sdpa(context: AttentionContext, bias: LayerBias | None) -> LayerMask:
    """Choose the fastest exact variant: a folded mask for short texts, strips on a CPU, fused kernels on a GPU."""
    slopes = None
    if bias is not None and context.is_causal:
        slopes = bias.slopes(context.query_positions, context.bias_dtype)
    if slopes is None:
        biases = _biases_by_distance(context, bias)
        if biases is None:
            return _folded(context, bias)
        return StripAttention(context, _tolerance(context), biases=biases)
    if context.q_len == 1 or torch.compiler.is_exporting():
        return folded_mask(context, bias)  # every runtime of exported graphs supports it
    if can_fuse(context, slopes) and _is_long(context):
        return FusedAttention(context, slopes, _tolerance(context))
    if slopes.requires_grad and context.dtype.itemsize < slopes.dtype.itemsize:
        return _folded(context, bias)  # augmented keys make this gradient a difference of large numbers
    if is_tracing(slopes):
        return AugmentedAttention(context, slopes)  # one graph for all lengths
    if not _is_long(context):
        return _folded(context, bias)
    is_fixed = slopes.shape[:2] == (1, 1) and not slopes.requires_grad
    is_cpu, is_half = slopes.device.type == "cpu", context.dtype.itemsize < 4
    if is_fixed and (is_cpu or not is_half) and context.segments() is not None:
        # Pruning keys would synchronize with the GPU.
        return StripAttention(context, _tolerance(context) if is_cpu else 0.0, slopes[0, 0])
    if is_cpu or is_half:
        return AugmentedAttention(context, slopes)
    return folded_mask(context, bias)  # a GPU sums in any order, and augmented float32 keys lose digits by it


_reads_every_key: ContextVar[bool] = ContextVar("reads_every_key", default=False)


@contextmanager
def reading_every_key() -> Iterator[None]:
    """Context manager under which uncompiled `sdpa` skips no key, however small its weight. For verification."""
    token = _reads_every_key.set(True)
    try:
        yield
    finally:
        _reads_every_key.reset(token)


def _folded(context: AttentionContext, bias: LayerBias | None) -> LayerMask:
    """Folded mask; on a CPU, also a second one that hides keys of negligible weight, if there are any."""
    mask = folded_mask(context, bias)
    if bias is None or context.q_len == 1 or context.is_paged or mask.device.type != "cpu" or is_tracing(mask):
        return mask
    tolerance = _tolerance(context)
    near_mask = hide_far(mask, tolerance) if tolerance > 0.0 else None
    return mask if near_mask is None else FoldedAttention(mask, near_mask)


def _tolerance(context: AttentionContext) -> float:
    """Largest weight that may be left out per query while the result stays exact to rounding."""
    reads_every_key = not torch.compiler.is_compiling() and _reads_every_key.get()
    return 0.0 if reads_every_key else exact_tolerance(context.dtype)


def _is_long(context: AttentionContext) -> bool:
    return context.q_len >= MIN_LONG_QUERIES and context.q_len * context.kv_len >= MIN_LONG_PAIRS


def _biases_by_distance(context: AttentionContext, bias: LayerBias | None) -> Tensor | None:
    """Bias ``(H, K)`` for strips on a CPU; None if there is no such bias or another variant is faster."""
    positions = context.query_positions
    if bias is None or positions.device.type != "cpu" or is_tracing(positions):
        return None
    if not (context.is_causal and _is_long(context)) or context.segments() is None:
        return None
    biases = bias.by_distance(context.kv_len, context.bias_dtype, positions.device)
    return None if biases is None or biases.requires_grad else biases


def prepare_banded(context: AttentionContext, bias: LayerBias | None) -> LayerMask:
    """Read only keys whose weight can exceed the tolerance. Single queries are cheap and use a folded mask.

    Raises:
        ValueError: The position method is not ALiBi, or visibility cannot be expressed as segments.
    """
    slopes = None if bias is None else bias.slopes(context.query_positions, context.bias_dtype)
    if slopes is None or slopes.shape[:2] != (1, 1):
        raise ValueError(
            "attention back end 'alibi_banded' needs ALiBi with one slope per head: use position_method 'alibi' "
            "without dynamic alibi_scaling, or switch to sdpa or eager"
        )
    if context.q_len == 1 and not context.keeps_windows:
        return folded_mask(context, bias)
    if not context.is_whole and context.segments() is None:
        raise ValueError(
            "attention back end 'alibi_banded' needs contiguous tokens: use sdpa or eager for padding between visible "
            "tokens, 4D masks and static caches, and in compiled models for packed documents and any padding mask"
        )
    return banded_attention(context, slopes[0, 0], bias.tolerance)


def banded_attention(context: AttentionContext, slopes: Tensor, tolerance: float) -> BiasedAttention:
    """Banded attention of contiguous tokens by the fastest kernels, for slopes ``(H,)``, nats per token."""
    if not context.keeps_windows and can_fuse(context, slopes[None, None]):
        return FusedAttention(context, slopes[None, None], tolerance)
    return BandedAttention(context, slopes, tolerance)


def prepare_flex(context: AttentionContext, bias: LayerBias | None) -> FlexAttention:
    """Pass ALiBi as slopes, from which the kernel computes the bias; pass any other bias as a dense tensor."""
    if bias is None:
        return FlexAttention(context)
    slopes = bias.slopes(context.query_positions, context.bias_dtype) if context.is_causal else None
    if slopes is not None:
        return FlexAttention(context, slopes)
    return FlexAttention(context, bias=bias.dense(context.query_positions, context.key_positions, context.bias_dtype))


def prepare_flash(context: AttentionContext, bias: LayerBias | None) -> FlashAttention:
    """Pass ALiBi as FlashAttention's ``alibi_slopes``, or no bias. Raises ValueError for any other bias."""
    slopes = None if bias is None else bias.slopes(context.query_positions, context.bias_dtype)
    if bias is not None and slopes is None:
        raise ValueError(
            "attention back end 'flash_attention_2' supports no position bias but ALiBi: use flex_attention or sdpa"
        )
    return FlashAttention(context, slopes)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LayerMask,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers. Keys and values are ``(B, H_kv, K, d)`` or ``WindowedStates``."""
    if attention_mask is None or isinstance(attention_mask, Tensor):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    if isinstance(key, Tensor) and not isinstance(attention_mask, FlashAttention | FusedAttention):
        key = key.repeat_interleave(module.num_key_value_groups, dim=1)
        value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    return attention_mask.attend(query, key, value, scaling, dropout).transpose(1, 2), None


class AttentionBackend(NamedTuple):
    """An entry of the registry.

    Attributes:
        prepare: Combines visibility and a layer's bias into the layer's mask argument.
        forward: The attention function; None for `eager` and `paged|eager`, which the modeling file defines.
        reads_windows: Whether it accepts the keys of a cache with one window per head.
    """

    prepare: Callable[[AttentionContext, LayerBias | None], LayerMask]
    forward: Callable[..., tuple[Tensor, Tensor | None]] | None = None
    reads_windows: bool = False


ATTENTION_BACKENDS: dict[str, AttentionBackend] = {
    "eager": AttentionBackend(folded_mask),
    "sdpa": AttentionBackend(prepare_sdpa, attention_forward),
    "alibi_banded": AttentionBackend(prepare_banded, attention_forward, reads_windows=True),
    "flex_attention": AttentionBackend(prepare_flex, attention_forward),
    "flash_attention_2": AttentionBackend(prepare_flash, attention_forward),
    "paged|eager": AttentionBackend(folded_mask),
}

# For benchmarks and tests. Arguments: context, slopes (H,) in nats per token, and the tolerance of `banded`.
ATTENTION_VARIANTS: dict[str, Callable[[AttentionContext, Tensor, float], BiasedAttention]] = {
    "strips": lambda context, slopes, _: StripAttention(context, exact_tolerance(context.dtype), slopes),
    "augmented": lambda context, slopes, _: AugmentedAttention(context, slopes[None, None]),
    "fused": lambda context, slopes, _: FusedAttention(context, slopes[None, None], exact_tolerance(context.dtype)),
    "flex": lambda context, slopes, _: FlexAttention(context, slopes[None, None]),
    "banded": banded_attention,
}

# A local view of the registry of transformers: an entry set here affects AlibiGPT only.
ALL_ATTENTION_FUNCTIONS = AttentionInterface()
for _name, _backend in ATTENTION_BACKENDS.items():
    if _backend.forward is not None:
        ALL_ATTENTION_FUNCTIONS[_name] = _backend.forward
# transformers accepts a new name in a config only after it is registered.
AttentionInterface.register("alibi_banded", attention_forward)
AttentionMaskInterface.register("alibi_banded", sdpa_mask)


def attention_backend(name: str, cache: Cache | None = None) -> AttentionBackend:
    """Look up a back end by name, which must read the cache, if there is one.

    Raises:
        ValueError: The name is not in the registry, so attention would run without the position bias; or the back
            end cannot read the cache.
    """
    if name not in ATTENTION_BACKENDS:
        why = "only FlashAttention 2, from the package flash-attn, accepts ALiBi slopes; " if "flash" in name else ""
        raise ValueError(
            f"attention back end {name!r} would silently drop the position bias; {why}use one of "
            f"{', '.join(ATTENTION_BACKENDS)}"
        )
    backend = ATTENTION_BACKENDS[name]
    if getattr(cache, "keeps_windows", False) and not backend.reads_windows:
        readers = " or ".join(repr(reader) for reader, entry in ATTENTION_BACKENDS.items() if entry.reads_windows)
        raise ValueError(f"AlibiWindowCache needs attn_implementation={readers}, got {name!r}")
    return backend
