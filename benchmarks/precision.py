"""Errors of ALiBi by number format: of its bias, and of attention with and without it.

Shapes: H heads, Q queries (the last of the text), K keys, d head size.
"""

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_alibi_gpt import attention_augmented
from modeling_alibi_gpt.alibi import alibi_slopes
from modeling_alibi_gpt.attention import ATTENTION_VARIANTS, folded_mask
from modeling_alibi_gpt.attention_context import AttentionContext
from modeling_alibi_gpt.checkpoints.load import DTYPES
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.position_base import LayerBias
from modeling_alibi_gpt.position_methods import AlibiPositions
from modeling_alibi_gpt.runtime.records import Record, check_record, provenance


HEAD_DIM = 64
NUM_QUERIES = 64
# At equal content scores, keys with a lower bias get less than 1.2e-7 of the weight of the query's own key.
WEIGHTED_NATS = 16.0
# The default of AlibiGPTConfig.
TOLERANCE = 1e-6

# Maps q (1, H, Q, d), k and v (1, H, K, d) of one dtype, and float32 slopes (H,), to (1, H, Q, d).
AttentionVariant = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def measure_precision(
    num_heads: Sequence[int] = (8, 12, 32),
    lengths_tokens: Sequence[int] = (2048, 8192, 32768),
    dtypes: Sequence[str] = tuple(DTYPES),
    variants: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Record]:
    """Return one ``precision`` record for each dtype, number of heads and length.

    Args:
        num_heads: Values of H.
        lengths_tokens: Values of K, at least ``NUM_QUERIES``.
        dtypes: Keys of ``DTYPES``.
        variants: Keys of ``VARIANTS``, the implementations under test; None means all.
        seed: Seed of queries, keys and values, which are standard normal.
    """
    cases = [(dtype, heads, length) for dtype in dtypes for heads in num_heads for length in lengths_tokens]
    return [_measure_case(*case, tuple(VARIANTS) if variants is None else variants, seed) for case in cases]


def _layer_bias(slopes: Tensor) -> LayerBias:
    """Layer bias of a model with these slopes."""
    num_heads = slopes.shape[0]
    config = AlibiGPTConfig(
        hidden_size=num_heads * HEAD_DIM,
        num_attention_heads=num_heads,
        alibi_slope_kind="custom",
        alibi_slopes=slopes.tolist(),
    )
    return LayerBias(AlibiPositions(config), 0)


def alibi_mask(slopes: Tensor, context: AttentionContext) -> Tensor:
    """Folded mask and bias ``(1, H, Q, K)`` that the model adds to its scores for these slopes."""
    mask = folded_mask(context, _layer_bias(slopes))
    assert mask is not None
    return mask


def folded_attention(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """The model's attention for short texts, with bias and mask folded into one tensor."""
    context = AttentionContext.from_lengths(q.shape[2], k.shape[2], q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=alibi_mask(slopes, context))


def variant_attention(name: str, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """One of the model's own ALiBi implementations."""
    context = AttentionContext.from_lengths(q.shape[2], k.shape[2], q.dtype)
    return ATTENTION_VARIANTS[name](context, slopes, TOLERANCE).attend(q, k, v, HEAD_DIM**-0.5, 0.0)


def compiled_attention(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """``augmented`` in compiled code, for the first and the last Q / 2 queries of a text.

    In compiled code all queries share the last query's position as the origin. Errors that grow with the text are
    largest for the first queries, which are furthest from it.
    """
    key_positions, end = torch.arange(k.shape[2], device=k.device)[None], q.shape[2] // 2
    query_positions = torch.cat((key_positions[:, :end], key_positions[:, -end:]), dim=1)
    mask = query_positions[:, None, :, None] >= key_positions[:, None, None, :]
    return _compiled_attention()(q, k, v, slopes[None, None], query_positions, key_positions, mask, HEAD_DIM**-0.5)


@functools.cache
def _compiled_attention() -> Callable[..., Tensor]:
    return torch.compile(attention_augmented.augmented_attention, fullgraph=True, dynamic=True)


# Without flex attention, which on a CPU computes scores like `folded`, and kernels that need a GPU.
VARIANTS: dict[str, AttentionVariant] = {
    "folded": folded_attention,
    "compiled": compiled_attention,
    **{name: partial(variant_attention, name) for name in ATTENTION_VARIANTS if name not in ("flex", "fused")},
}
# Variants that get the queries of both ends of a text in one call.
VARIANTS_OF_BOTH_ENDS = {"compiled"}


def plain_attention(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """Baseline: causal attention without a bias."""
    context = AttentionContext.from_lengths(q.shape[2], k.shape[2], q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=context.mask())


def absolute_attention(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """Bias as in BLOOM's code: slope times absolute key position, rounded to the dtype before the addition."""
    context = AttentionContext.from_lengths(q.shape[2], k.shape[2], q.dtype)
    bias = _absolute_bias(slopes, k.shape[2], q.dtype)
    mask = torch.where(context.mask(), bias[None, :, None, :], torch.finfo(q.dtype).min)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _absolute_bias(slopes: Tensor, kv_len: int, dtype: torch.dtype) -> Tensor:
    """Bias ``(H, K)`` from absolute positions."""
    return (slopes[:, None] * torch.arange(kv_len)).to(dtype)


def exact_attention(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """Reference attention in float64, computed head by head to save memory."""
    distance = _distance(q.shape[2], k.shape[2]).to(q.device)
    outputs = []
    for query, key, value, slope in zip(q[0].double(), k[0].double(), v[0].double(), slopes.double(), strict=True):
        scores = query @ key.T / math.sqrt(query.shape[-1]) - slope * distance
        outputs.append(scores.masked_fill(distance < 0, -math.inf).softmax(-1) @ value)
    return torch.stack(outputs)[None]


def exact_plain_attention(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """:func:`exact_attention` without a bias."""
    return exact_attention(q, k, v, torch.zeros_like(slopes))


def bias_errors(slopes: Tensor, q_len: int, kv_len: int, dtype: torch.dtype) -> dict[str, float]:
    """Compare the folded mask and BLOOM's bias with ``-s (i - j)`` in float64.

    Returns:
        ``bias_error_ulps``, the largest error over all visible keys, in units in the last place of ``dtype`` at the
        true value; 0.5 is optimal. ``bias_error_nats`` and ``absolute_bias_error_nats``, the largest errors over keys
        with relevant weight (``WEIGHTED_NATS``), relative to the query's own key, as softmax ignores constants.
    """
    context = AttentionContext.from_lengths(q_len, kv_len, dtype)
    folded = alibi_mask(slopes, context)[0]
    absolute = _absolute_bias(slopes, kv_len, dtype).double()
    distance = _distance(q_len, kv_len)
    worst = {"bias_error_ulps": 0.0, "bias_error_nats": 0.0, "absolute_bias_error_nats": 0.0}
    for slope, head, bloom in zip(slopes.double(), folded, absolute, strict=True):
        exact = -slope * distance
        visible, weighted = distance >= 0, (distance >= 0) & (exact > -WEIGHTED_NATS)
        error = (head.double() - exact).abs()
        # Beyond its range float16 gives -inf and hence weight 0; the true weight underflows in float16 as well.
        representable = visible & (exact >= torch.finfo(dtype).min)
        ulp = torch.finfo(dtype).eps * 2.0 ** (torch.frexp(exact).exponent - 1)
        relative = bloom[None, :] - bloom[kv_len - q_len :, None]
        figures = {
            "bias_error_ulps": (error / ulp)[representable],
            "bias_error_nats": error[weighted],
            "absolute_bias_error_nats": (relative - exact).abs()[weighted],
        }
        worst = {name: max(worst[name], values.max().item()) for name, values in figures.items()}
    return worst


def _distance(q_len: int, kv_len: int) -> Tensor:
    """Distance ``(Q, K)`` float64, tokens; negative for keys that a query does not see."""
    positions = torch.arange(kv_len, dtype=torch.float64)
    return positions[kv_len - q_len :, None] - positions[None, :]


def output_errors(
    attention: AttentionVariant, exact: AttentionVariant, inputs: Sequence[Tensor], *, takes_both_ends: bool = False
) -> dict[str, float]:
    """Compare the output of ``attention`` with that of ``exact``, for the queries at both ends of a text.

    Early queries average few values, so outputs and absolute errors are largest there. Without a bias, both shrink
    with the square root of the length. The maximum error therefore covers both ends, and the RMS error is relative.

    Args:
        attention: Implementation under test.
        exact: Reference implementation.
        inputs: Queries ``(1, H, Q, d)``, used as the first and as the last of the text; keys, values and slopes.
        takes_both_ends: Whether ``attention`` gets both ends in one call; else the first queries form their own text.

    Returns:
        ``max_error``, the largest absolute error of first and last queries; ``last_max_error``, that of the last
        queries; ``output_rms``, the root mean square of the exact output of the last queries; and
        ``relative_rms_error``, their root mean square error divided by it.
    """
    q, k, v, slopes = inputs
    first = (q, k[:, :, : q.shape[2]], v[:, :, : q.shape[2]], slopes)
    if takes_both_ends:
        outputs = attention(torch.cat((q, q), dim=2), k, v, slopes).chunk(2, dim=2)
    else:
        outputs = attention(*first), attention(*inputs)
    first_error = (outputs[0].double() - exact(*first)).abs().max().item()
    expected = exact(*inputs)
    error = outputs[1].double() - expected
    last_error, output_rms = error.abs().max().item(), expected.square().mean().sqrt().item()
    return {
        "max_error": max(first_error, last_error),
        "last_max_error": last_error,
        "relative_rms_error": error.square().mean().sqrt().item() / output_rms,
        "output_rms": output_rms,
    }


@torch.no_grad()
def _measure_case(dtype_name: str, num_heads: int, length_tokens: int, variants: Sequence[str], seed: int) -> Record:
    dtype, slopes = DTYPES[dtype_name], alibi_slopes(num_heads)
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(1, num_heads, length, HEAD_DIM, generator=generator).to(dtype)
        for length in (NUM_QUERIES, length_tokens, length_tokens)
    )
    record: dict[str, Any] = {
        "kind": "precision",
        "dtype": dtype_name,
        "num_heads": num_heads,
        "length_tokens": length_tokens,
        "head_dim": HEAD_DIM,
        "num_queries": NUM_QUERIES,
        **bias_errors(slopes, NUM_QUERIES, length_tokens, dtype),
    }
    attentions = {
        "plain": (plain_attention, exact_plain_attention),
        "absolute": (absolute_attention, exact_attention),
        **{name: (VARIANTS[name], exact_attention) for name in variants},
    }
    for name, (attention, exact) in attentions.items():
        takes_both_ends = name in VARIANTS_OF_BOTH_ENDS
        figures = output_errors(attention, exact, (q, k, v, slopes), takes_both_ends=takes_both_ends)
        record |= {f"{name}_{figure}": value for figure, value in figures.items()}
    record["provenance"] = provenance(seed=seed)
    check_record(record)
    return record
