"""Times attention alone: each ALiBi implementation against plain causal attention without positions.

Shapes: B rows, H heads, T tokens, d head size.
"""

from collections.abc import Callable, Iterator
from dataclasses import field
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchmarks.precision import exact_attention
from benchmarks.timing import extra_bytes, summarize, time_interleaved
from modeling_alibi_gpt.alibi import alibi_causal_bias, alibi_slopes
from modeling_alibi_gpt.attention import ATTENTION_VARIANTS
from modeling_alibi_gpt.attention_context import AttentionContext
from modeling_alibi_gpt.checkpoints.load import DTYPES
from modeling_alibi_gpt.runtime.config import Count, config_dataclass
from modeling_alibi_gpt.runtime.records import Record


MODES = ("forward", "forward_backward")
REFERENCE = "plain"
# Number of queries at the end of the text whose output is compared with float64.
_NUM_CHECKED = 64
# Attention weight that `banded` may leave out per query; the default of AlibiGPTConfig.
_TOLERANCE = 1e-6

# Maps q, k and v (B, H, T, d) and slopes (H,) to (B, H, T, d).
Variant = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@config_dataclass
class AttentionCase:
    """Attention to time, for every combination of lengths and dtypes."""

    lengths_tokens: Annotated[list[Count], Field(min_length=1)]
    """Text lengths."""
    num_heads: Count
    """Number of heads."""
    ways: list[str]
    """``dense``, ``eager``, ``strips``, ``augmented``, ``banded``, ``flex`` or ``fused``. ``plain``, causal attention
    without a bias, is the reference and always included.
    """
    dtypes: list[Literal[*DTYPES]] = field(default_factory=lambda: ["float32"])
    """``float32``, ``bfloat16`` or ``float16``."""
    mode: Literal[*MODES] = "forward"
    """``forward`` or ``forward_backward``."""
    head_dim: Count = 64
    """Head size."""
    num_rounds: Count = 5
    """Number of timed runs of each."""
    num_rows: Count = 1
    """Number of texts in a batch."""

    def __post_init__(self) -> None:
        for way in self.ways:
            if way not in VARIANTS:
                raise ValueError(f"ways: expected {', '.join(VARIANTS)}, got {way!r}")


def time_attention(case: AttentionCase, device: torch.device, seed: int = 0) -> Iterator[Record]:
    """Yield ``attention_speed`` records without provenance, for standard normal queries, keys and values."""
    for dtype in case.dtypes:
        for length_tokens in case.lengths_tokens:
            yield from _time_length(case, dtype, length_tokens, device, seed)


def _time_length(
    case: AttentionCase, dtype: str, length_tokens: int, device: torch.device, seed: int
) -> Iterator[Record]:
    slopes = alibi_slopes(case.num_heads).to(device)
    generator = torch.Generator(device).manual_seed(seed)
    shape = (case.num_rows, case.num_heads, length_tokens, case.head_dim)
    learns = case.mode == "forward_backward"
    q, k, v, direction = (torch.randn(shape, generator=generator, device=device).to(DTYPES[dtype]) for _ in range(4))
    inputs = [tensor.requires_grad_(learns) for tensor in (q, k, v)]

    def run(way: Variant) -> Tensor:
        output = way(*inputs, slopes)
        if learns:
            torch.autograd.grad(output, inputs, direction)
        return output.detach()

    names = list(dict.fromkeys((REFERENCE, *case.ways)))
    with torch.set_grad_enabled(learns):
        # Setup that a model does once for all layers is not timed.
        ways = {name: VARIANTS[name](length_tokens, DTYPES[dtype], slopes) for name in names}
        candidates = {name: partial(run, way) for name, way in ways.items()}
        errors = {name: _max_error(candidates[name](), inputs, slopes * (name != REFERENCE)) for name in names}
        memory = {name: extra_bytes(candidates[name]) for name in names}
        summary = summarize(time_interleaved(candidates, case.num_rounds), REFERENCE)
    for name in names:
        yield {
            "kind": "attention_speed",
            "name": name,
            "mode": case.mode,
            "dtype": dtype,
            "num_rows": case.num_rows,
            "length_tokens": length_tokens,
            "num_heads": case.num_heads,
            "head_dim": case.head_dim,
            **summary[name],
            "extra_bytes": memory[name],
            "max_error": errors[name],
        }


def _plain(length_tokens: int, dtype: torch.dtype, slopes: Tensor) -> Variant:
    return lambda q, k, v, slopes: F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _dense(length_tokens: int, dtype: torch.dtype, slopes: Tensor) -> Variant:
    mask = alibi_causal_bias(slopes, length_tokens, mask_value=-torch.inf).to(dtype)[None]
    return lambda q, k, v, slopes: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _eager(length_tokens: int, dtype: torch.dtype, slopes: Tensor) -> Variant:
    """Scores, bias and softmax as separate operations, as in BLOOM and MPT."""
    mask = alibi_causal_bias(slopes, length_tokens, mask_value=-torch.inf).to(dtype)[None]

    def attend(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
        scores = torch.matmul(q, k.mT) * q.shape[-1] ** -0.5 + mask
        return torch.matmul(F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), v)

    return attend


def _variant(name: str) -> Callable[[int, torch.dtype, Tensor], Variant]:
    def make(length_tokens: int, dtype: torch.dtype, slopes: Tensor) -> Variant:
        context = AttentionContext.from_lengths(length_tokens, length_tokens, dtype, slopes.device)
        attention = ATTENTION_VARIANTS[name](context, slopes, _TOLERANCE)
        return lambda q, k, v, slopes: attention.attend(q, k, v, q.shape[-1] ** -0.5, 0.0)

    return make


# For long texts, `sdpa` uses `strips` on a CPU and, in half precision, `fused` on a GPU.
VARIANTS: dict[str, Callable[[int, torch.dtype, Tensor], Variant]] = {
    "plain": _plain,
    "dense": _dense,
    "eager": _eager,
    **{name: _variant(name) for name in ATTENTION_VARIANTS},
}


def _max_error(output: Tensor, inputs: list[Tensor], slopes: Tensor) -> float:
    """Largest error of the first row's last queries relative to float64."""
    q, k, v = (tensor.detach()[:1] for tensor in inputs)
    expected = exact_attention(q[:, :, -_NUM_CHECKED:], k, v, slopes)
    return (output[:1, :, -_NUM_CHECKED:].double() - expected).abs().max().item()
