# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""ALiBi attention in fused Triton kernels, which read only the keys that can matter. Exported to the Hub.

Scores never leave the chip, forward or backward, and slopes get gradients. For bfloat16 and float16 on NVIDIA GPUs.

Shapes: B batch, H heads, H_kv key/value heads, Q queries, K keys, d head size.
"""

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.utils import is_tracing

from .attention_augmented import AugmentedAttention
from .attention_context import AttentionContext
from .attention_launch import backward, backward_operator, forward, forward_operator


DTYPES = (torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 128
# bfloat16 needs this compute capability.
_MIN_CAPABILITY = (8, 0)


class FusedAttention:
    """ALiBi through :func:`fused_attention`.

    Args:
        context: Visibility, which must be expressed by segments.
        slopes: ``(1 or B, 1, H)``, nats per token.
        tolerance: Largest attention weight that may be left out per query.
    """

    def __init__(self, context: AttentionContext, slopes: Tensor, tolerance: float) -> None:
        first_keys = context.first_keys()
        self.context, self.slopes, self.tolerance = context, slopes, tolerance
        self.first_keys = None if first_keys is None else first_keys.int()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Return ``(B, H, Q, d)`` for queries ``(B, H, Q, d)`` and for keys and values ``(B, H_kv, K, d)``."""
        if dropout > 0.0 or query.shape[-1] > MAX_HEAD_DIM:
            num_groups = query.shape[1] // key.shape[1]
            key, value = (states.repeat_interleave(num_groups, dim=1) for states in (key, value))
            return AugmentedAttention(self.context, self.slopes).attend(query, key, value, scaling, dropout)
        first_keys = None if self.first_keys is None else self.first_keys.to(query.device)
        slopes = self.slopes[:, 0].to(query.device)
        return fused_attention(query, key, value, slopes, scaling, self.tolerance, first_keys)


def can_fuse(context: AttentionContext, slopes: Tensor) -> bool:
    """Whether the kernels support the device, the dtype, the visibility, the model and slopes ``(1 or B, 1 or Q, H)``.

    Of all tracers, only ``torch.compile`` can call them.
    """
    if is_tracing(slopes) and (not torch.compiler.is_compiling() or torch.compiler.is_exporting()):
        return False
    if context.dtype not in DTYPES or slopes.shape[1] != 1 or not (context.is_causal and _suits_model(context)):
        return False
    return _has_kernels(slopes.device) and (context.is_whole or context.segments() is not None)


def _suits_model(context: AttentionContext) -> bool:
    """Whether the head size is supported and there is no dropout, or its fallback can be built within a layer."""
    if context.inputs is None:
        return True
    config = context.inputs.config
    may_drop = config.attention_dropout and (torch.is_grad_enabled() or context.inputs.cache is not None)
    return config.head_dim <= MAX_HEAD_DIM and not may_drop


@torch.compiler.assume_constant_result
def _has_kernels(device: torch.device) -> bool:
    return _runs_kernels(device)


@functools.cache
def _runs_kernels(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= _MIN_CAPABILITY


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor,
    scaling: float,
    tolerance: float,
    first_keys: Tensor | None = None,
) -> Tensor:
    """Causal ALiBi attention, differentiable in queries, keys, values and slopes.

    Args:
        query: ``(B, H, Q, d)``, the last Q of K tokens; d at most 128.
        key: ``(B, H_kv, K, d)``, like ``value``; H is a multiple of H_kv.
        value: ``(B, H_kv, K, d)``.
        slopes: ``(1 or B, H)`` float32, nats per token.
        scaling: Factor of ``q . k``, above 0.
        tolerance: Largest attention weight that may be left out per query.
        first_keys: ``(1 or B, Q)`` int32, the first key that each query sees, at most its own; None means key 0.

    Returns:
        ``(B, H, Q, d)``.

    Raises:
        ValueError: There are more queries than keys, or H is not a multiple of H_kv.
    """
    if query.shape[2] > key.shape[2] or query.shape[1] % key.shape[1]:
        raise ValueError(
            f"expected at least as many keys as queries and heads in groups of equal size, got queries "
            f"{tuple(query.shape)} and keys {tuple(key.shape)}"
        )
    return _FusedAttention.apply(query, key, value, slopes, scaling, tolerance, first_keys)


class _FusedAttention(torch.autograd.Function):
    """See :func:`fused_attention`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        query, key, value, slopes, scaling, tolerance, first_keys = arguments
        states = tuple(_with_dense_rows(tensor) for tensor in (query, key, value))
        slopes, first_keys = slopes.detach().contiguous(), None if first_keys is None else first_keys.contiguous()
        run = forward_operator if torch.compiler.is_compiling() else forward
        output, log_sums, starts = run(*states, slopes, scaling, tolerance, first_keys)
        ctx.save_for_backward(*states, output, slopes, log_sums, starts, first_keys)
        ctx.scaling = scaling
        return output

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        # autograd.grad skips the error of once_differentiable, and would leave these terms out.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("fused attention has no second derivatives: set attn_implementation='eager'")
        return _FusedAttention._gradients(ctx, direction)

    @staticmethod
    @once_differentiable
    def _gradients(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        run = backward_operator if torch.compiler.is_compiling() else backward
        learns_slopes = ctx.needs_input_grad[3]
        direction = _with_dense_rows(direction)
        *gradients, slope_gradients = run(direction, *ctx.saved_tensors, ctx.scaling, learns_slopes)
        return *gradients, slope_gradients if learns_slopes else None, None, None, None


def _with_dense_rows(states: Tensor) -> Tensor:
    """A copy unless the numbers of a token are adjacent in memory, as the kernels need."""
    return states if states.stride(-1) == 1 else states.contiguous()
