# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""The table of attention back ends, and how each applies a position bias. Travels to the Hub.

Before the layers run, a back end's entry turns visibility and the position bias into what its attention function takes
for a mask: one folded tensor, or an object that does a layer's attention itself and never materialises the bias.

Shapes: B batch (or 1, where all rows agree), H heads, Q queries, K keys, d head size.
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
from .attention_strips import StripAttention


# With fewer pairs of a query and a key, or fewer queries, the folded mask is quicker: it is made once for all layers.
# Measured on two CPU cores.
MIN_LONG_PAIRS = 512 * 512
MIN_LONG_QUERIES = 32


class PositionBias(Protocol):
    """What a layer adds to its scaled scores before the softmax."""

    def dense(self, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype) -> Tensor:
        """``(B, H, Q, K)`` of a dtype, nats, between positions ``(B, Q)`` and ``(B, K)``."""

    def slopes(self, query_positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """``(1 or B, 1 or Q, H)``, nats per token, where the bias is ``-slope * distance``; else None."""

    def by_distance(self, num_distances: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """``(H, N)``, nats, of keys 0 to ``N - 1`` tokens behind their query; None where more than that decides."""

    @property
    def tolerance(self) -> float:
        """Largest weight that a query may lose."""


class BiasedAttention(Protocol):
    """Visibility and bias of a layer, with the attention function that applies them."""

    def attend(self, query: Tensor, key: Any, value: Any, scaling: float, dropout: float) -> Tensor:
        """Output ``(B, H, Q, d)`` of queries ``(B, H, Q, d)``, and keys and values ``(B, H, K, d)``."""


LayerMask = Tensor | BiasedAttention | None


def folded_mask(context: AttentionContext, bias: PositionBias | None) -> Tensor | None:
    """Mask and bias as one additive mask, which every dense attention function takes.

    The bias is computed from relative distances in float32 (float64 in a float64 model) and only then cast: absolute
    positions times slopes would collide in bfloat16.

    Args:
        context: Mask and positions.
        bias: Of the layer; None for methods without.

    Returns:
        ``(B, H, Q, K)`` of the dtype attention computes in; the mask unchanged where there is nothing to add.
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
    return torch.where(is_visible, score, torch.finfo(context.dtype).min).to(context.dtype)


def prepare_sdpa(context: AttentionContext, bias: PositionBias | None) -> LayerMask:
    """The fastest of three exact variants: strips on a CPU, augmented keys elsewhere, a folded mask for short texts.

    Other biases of distance than ALiBi's go by strips too, where they do not learn. Slopes that learn, or differ by
    query, go by augmented keys, and so does what torch compiles: there one graph serves all lengths. Exceptions keep
    the folded mask: an exported graph, for every runtime knows it; and slopes that learn in bfloat16 or float16, whose
    gradient by augmented keys would be a difference of large numbers. In float32, kernels of GPUs add in an order of
    their own, in which augmented keys lose digits: strips and folded masks take their place.
    """
    slopes = None
    if bias is not None and context.is_causal:
        slopes = bias.slopes(context.query_positions, context.bias_dtype)
    if slopes is None:
        biases = _biases_by_distance(context, bias)
        if biases is None:
            return _folded(context, bias)
        return StripAttention(context, _tolerance(context), biases=biases)
    if context.q_len == 1 or torch.compiler.is_exporting():
        return folded_mask(context, bias)
    if slopes.requires_grad and context.dtype.itemsize < slopes.dtype.itemsize:
        return _folded(context, bias)
    if is_tracing(slopes):
        return AugmentedAttention(context, slopes)
    if not _is_long(context):
        return _folded(context, bias)
    is_fixed = slopes.shape[:2] == (1, 1) and not slopes.requires_grad
    is_cpu, is_half = slopes.device.type == "cpu", context.dtype.itemsize < 4
    if is_fixed and (is_cpu or not is_half) and context.segments() is not None:
        # To find out which keys count makes the host wait for a GPU.
        return StripAttention(context, _tolerance(context) if is_cpu else 0.0, slopes[0, 0])
    return AugmentedAttention(context, slopes) if is_cpu or is_half else folded_mask(context, bias)


_reads_every_key: ContextVar[bool] = ContextVar("reads_every_key", default=False)


@contextmanager
def reading_every_key() -> Iterator[None]:
    """Context in which `sdpa` skips no key, however small its weight: for proofs, at the cost of time."""
    token = _reads_every_key.set(True)
    try:
        yield
    finally:
        _reads_every_key.reset(token)


def _folded(context: AttentionContext, bias: PositionBias | None) -> LayerMask:
    """A folded mask, with a second one on a CPU where some keys are too far below the others to count."""
    mask = folded_mask(context, bias)
    if bias is None or context.q_len == 1 or context.is_paged or mask.device.type != "cpu" or is_tracing(mask):
        return mask
    tolerance = _tolerance(context)
    near_mask = hide_far(mask, tolerance) if tolerance > 0.0 else None
    return mask if near_mask is None else FoldedAttention(mask, near_mask)


def _tolerance(context: AttentionContext) -> float:
    """Largest weight that a query may lose and be exact to rounding."""
    return 0.0 if _reads_every_key.get() else exact_tolerance(context.dtype)


def _is_long(context: AttentionContext) -> bool:
    return context.q_len >= MIN_LONG_QUERIES and context.q_len * context.kv_len >= MIN_LONG_PAIRS


def _biases_by_distance(context: AttentionContext, bias: PositionBias | None) -> Tensor | None:
    """``(H, K)`` for strips on a CPU; None without such a bias, or where another variant serves better."""
    positions = context.query_positions
    if bias is None or positions.device.type != "cpu" or is_tracing(positions):
        return None
    if not (context.is_causal and _is_long(context)) or context.segments() is None:
        return None
    biases = bias.by_distance(context.kv_len, context.bias_dtype, positions.device)
    return None if biases is None or biases.requires_grad else biases


def prepare_banded(context: AttentionContext, bias: PositionBias | None) -> LayerMask:
    """Reads only the keys that can matter; uses a folded mask for single queries, which are cheap.

    Raises:
        ValueError: The position method is not ALiBi, or visibility cannot be expressed as segments.
    """
    slopes = None if bias is None else bias.slopes(context.query_positions, context.bias_dtype)
    if slopes is None or slopes.shape[:2] != (1, 1):
        raise ValueError(
            "attention back end 'alibi_banded' needs ALiBi with one slope a head: position_method 'alibi' without "
            "dynamic alibi_scaling; the others run on sdpa and eager"
        )
    if context.q_len == 1 and not context.keeps_windows:
        return folded_mask(context, bias)
    if context.segments() is None:
        raise ValueError(
            "attention back end 'alibi_banded' reads runs of tokens: padding between visible tokens, masks of four "
            "dimensions, static caches and compiled packing run on sdpa and eager"
        )
    return BandedAttention(context, slopes[0, 0], bias.tolerance)


def prepare_flex(context: AttentionContext, bias: PositionBias | None) -> FlexAttention:
    """ALiBi by its slopes, which the kernel turns into biases; every other bias written down for it to read."""
    if bias is None:
        return FlexAttention(context)
    slopes = bias.slopes(context.query_positions, context.bias_dtype) if context.is_causal else None
    if slopes is not None:
        return FlexAttention(context, slopes)
    return FlexAttention(context, bias=bias.dense(context.query_positions, context.key_positions, context.bias_dtype))


def prepare_flash(context: AttentionContext, bias: PositionBias | None) -> FlashAttention:
    """ALiBi by FlashAttention's own slopes, or no bias; a ValueError for what it cannot compute."""
    slopes = None if bias is None else bias.slopes(context.query_positions, context.bias_dtype)
    if bias is not None and slopes is None:
        raise ValueError(
            "attention back end 'flash_attention_2' takes ALiBi's slopes and no other position bias: use "
            "flex_attention or sdpa"
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
    """Attention of a layer as transformers calls it: keys and values ``(B, H_kv, K, d)``, or what a cache keeps."""
    if attention_mask is None or isinstance(attention_mask, Tensor):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    if isinstance(key, Tensor) and not isinstance(attention_mask, FlashAttention):
        key = key.repeat_interleave(module.num_key_value_groups, dim=1)
        value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    return attention_mask.attend(query, key, value, scaling, dropout).transpose(1, 2), None


class AttentionBackend(NamedTuple):
    """An entry of the table.

    Attributes:
        prepare: Turns visibility and a layer's bias into what the layer gets for a mask.
        forward: The attention function; None for `eager` and `paged|eager`, which the model's file defines.
        reads_windows: Whether it takes the keys of a cache that keeps a window a head.
    """

    prepare: Callable[[AttentionContext, PositionBias | None], LayerMask]
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

# Each computation of ALiBi that the entries above choose from, by name, for measurements and tests: from a context,
# slopes (H,) in nats per token, and the largest weight that `banded` may leave out of a query.
ATTENTION_VARIANTS: dict[str, Callable[[AttentionContext, Tensor, float], BiasedAttention]] = {
    "strips": lambda context, slopes, _: StripAttention(context, exact_tolerance(context.dtype), slopes),
    "augmented": lambda context, slopes, _: AugmentedAttention(context, slopes[None, None]),
    "flex": lambda context, slopes, _: FlexAttention(context, slopes[None, None]),
    "banded": BandedAttention,
}

# This model's own view of transformers' registry: an entry set here changes a back end for AlibiGPT only.
ALL_ATTENTION_FUNCTIONS = AttentionInterface()
for _name, _backend in ATTENTION_BACKENDS.items():
    if _backend.forward is not None:
        ALL_ATTENTION_FUNCTIONS[_name] = _backend.forward
# A name of our own must be known to transformers before a config may hold it.
AttentionInterface.register("alibi_banded", attention_forward)
AttentionMaskInterface.register("alibi_banded", sdpa_mask)


def attention_backend(name: str, cache: Cache | None = None) -> AttentionBackend:
    """Entry of the table.

    Args:
        name: Of the back end.
        cache: That it has to read, or None.

    Raises:
        ValueError: The back end is none of the table's, and would run without the position bias; or it cannot read
            the cache.
    """
    if name not in ATTENTION_BACKENDS:
        why = (
            "of FlashAttention only version 2, from the package flash-attn, takes slopes; " if "flash" in name else ""
        )
        raise ValueError(
            f"attention back end {name!r} would drop the position bias silently; {why}AlibiGPT runs on: "
            f"{', '.join(ATTENTION_BACKENDS)}"
        )
    backend = ATTENTION_BACKENDS[name]
    if getattr(cache, "keeps_windows", False) and not backend.reads_windows:
        readers = " or ".join(repr(reader) for reader, entry in ATTENTION_BACKENDS.items() if entry.reads_windows)
        raise ValueError(f"AlibiWindowCache goes with attn_implementation={readers}, got {name!r}")
    return backend
