"""Every way of attention on a GPU against the float64 definition: forward, gradients, formats, long texts."""

import functools
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.precision import exact_attention, exact_plain_attention
from modeling_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.alibi import alibi_slopes
from modeling_alibi_gpt.attention import ATTENTION_BACKENDS, attention_forward
from modeling_alibi_gpt.attention_augmented import AugmentedAttention
from modeling_alibi_gpt.attention_banded import BandedAttention
from modeling_alibi_gpt.attention_context import AttentionContext, attention_context
from modeling_alibi_gpt.attention_flex import FlexAttention
from modeling_alibi_gpt.attention_fused import FusedAttention
from modeling_alibi_gpt.attention_inputs import ForwardInputs
from modeling_alibi_gpt.position_base import LayerBias
from modeling_alibi_gpt.position_methods import AlibiPositions
from tests.gpu.device import DEVICE


pytestmark = pytest.mark.gpu

LENGTH = 1300
ROWS = 2
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ("whole", "left", "packed")
TOLERANCE = 1e-6


@pytest.fixture(autouse=True)
def fresh_graphs() -> None:
    """Each test compiles for itself, as a user's process does."""
    torch._dynamo.reset()


class Case(NamedTuple):
    """One drawn attention: tensors on the CPU, and what a query sees."""

    query: Tensor
    key: Tensor
    value: Tensor
    direction: Tensor
    is_seen: Tensor  # (B, 1, Q, K)
    is_real: Tensor  # (B, 1, Q, 1), False for padding
    attention_mask: Tensor | None
    position_ids: Tensor | None


@functools.cache
def draw(layout: str, dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_dim: int, length: int) -> Case:
    generator = torch.Generator().manual_seed(head_dim + length)
    shapes = [(ROWS, heads, length, head_dim) for heads in (num_heads, num_kv_heads, num_kv_heads, num_heads)]
    query, key, value, direction = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    slots = torch.arange(length)
    is_seen = (slots[:, None] >= slots).expand(ROWS, 1, -1, -1)
    is_real = torch.ones(ROWS, 1, length, 1, dtype=torch.bool)
    attention_mask = position_ids = None
    if layout == "left":
        attention_mask = torch.ones(ROWS, length, dtype=torch.long)
        attention_mask[0, : length // 3] = 0
        is_seen = is_seen & attention_mask[:, None, None].bool()
        is_real = attention_mask[:, None, :, None].bool()
        is_seen = is_seen | (~is_real & (slots[:, None] == slots))
    elif layout == "packed":
        cut = [length // 5, length // 2]
        document = torch.stack([(slots >= stop).long() for stop in cut])
        position_ids = torch.stack([torch.where(slots >= stop, slots - stop, slots) for stop in cut])
        is_seen = is_seen & (document[:, None, :, None] == document[:, None, None])
    # Padding counts for nothing, in the gradients neither.
    return Case(query, key, value, direction * is_real, is_seen, is_real, attention_mask, position_ids)


def context_of(case: Case, config: AlibiGPTConfig, device: str) -> AttentionContext:
    rows, _, length, head_dim = case.query.shape
    embeds = torch.zeros(rows, length, 1, device=device, dtype=case.query.dtype)
    mask, positions = (None if part is None else part.to(device) for part in (case.attention_mask, case.position_ids))
    return attention_context(ForwardInputs(config, embeds, mask, positions), kwargs={})


def definition(case: Case, slopes: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and gradients of queries, keys, values and slopes ``(H,)``, in float64."""
    states = [tensor.double().requires_grad_() for tensor in (case.query, case.key, case.value)]
    slopes = slopes.double().requires_grad_()
    query, (key, value) = (
        states[0],
        (states[i].repeat_interleave(len(slopes) // states[i].shape[1], 1) for i in (1, 2)),
    )
    slots = torch.arange(query.shape[2])
    scores = query @ key.mT * query.shape[-1] ** -0.5 - slopes[:, None, None] * (slots[:, None] - slots)
    output = scores.masked_fill(~case.is_seen, -torch.inf).softmax(-1) @ value
    return output.detach(), torch.autograd.grad(output, (*states, slopes), case.direction.double())


def plain(case: Case) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Torch's attention without a bias, on the GPU: the yardstick of a number format."""
    states = [tensor.to(DEVICE).requires_grad_() for tensor in (case.query, case.key, case.value)]
    groups = states[0].shape[1] // states[1].shape[1]
    key, value = (tensor.repeat_interleave(groups, 1) for tensor in states[1:])
    output = F.scaled_dot_product_attention(states[0], key, value, attn_mask=case.is_seen.to(DEVICE))
    gradients = torch.autograd.grad(output, states, case.direction.to(DEVICE))
    return output.detach().cpu(), tuple(gradient.cpu() for gradient in gradients)


def computed(case: Case, back_end: str, learns: bool) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """A back end's output and gradients on the GPU, those of slopes ``(H,)`` last where they learn; and the slopes."""
    num_heads, num_kv_heads = case.query.shape[1], case.key.shape[1]
    config = AlibiGPTConfig(
        hidden_size=num_heads * 16,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        num_hidden_layers=1,
        alibi_trainable="slopes" if learns else "none",
        alibi_tolerance=TOLERANCE,
        attn_implementation=back_end,
    )
    method = AlibiPositions(config).to(DEVICE)
    mask = ATTENTION_BACKENDS[back_end].prepare(context_of(case, config, DEVICE), LayerBias(method, 0))
    states = [tensor.to(DEVICE).requires_grad_() for tensor in (case.query, case.key, case.value)]
    module = SimpleNamespace(num_key_value_groups=num_heads // num_kv_heads, is_causal=True, training=True)
    output = attention_forward(module, *states, mask, scaling=states[0].shape[-1] ** -0.5)[0].transpose(1, 2)
    parameters = [method.bias_log_slopes] if learns else []
    gradients = torch.autograd.grad(output, (*states, *parameters), case.direction.to(DEVICE))
    slopes = method.layer_slopes(0).detach().cpu()
    gradients = [gradient.cpu() for gradient in gradients]
    if learns:
        gradients[-1] = gradients[-1][0] / slopes
    return output.detach().cpu(), tuple(gradients), slopes


def assert_as_good_as_plain(
    found: Tensor, expected: Tensor, base: Tensor, exact_base: Tensor, left_out: float
) -> None:
    """At most twice plain attention's error of the format, in the largest and in the mean square, plus rounding."""
    assert torch.isfinite(found).all()
    # A gradient that is 0, as of a lone key's score, is a difference of numbers of order one.
    scale, base_scale = (exact.abs().max() or 1.0 for exact in (expected, exact_base))
    error, base_error = (found.double() - expected) / scale, (base.double() - exact_base) / base_scale
    rounding = 8 * torch.finfo(torch.float32).eps + torch.finfo(found.dtype).eps / 2
    assert error.abs().max() <= 2 * base_error.abs().max() + rounding + left_out
    assert error.square().mean().sqrt() <= 2 * base_error.square().mean().sqrt() + rounding / 8 + left_out


def check(case: Case, back_end: str, learns: bool = False) -> None:
    output, gradients, slopes = computed(case, back_end, learns)
    exact = definition(case, slopes)
    base, exact_base = plain(case), definition(case, torch.zeros_like(slopes))
    # A query that loses weight w loses at most 2 w of the largest value, and a gradient that much of its own size.
    left_out = 4 * TOLERANCE if back_end == "alibi_banded" else 0.0
    real = case.is_real
    assert_as_good_as_plain(output * real, exact[0] * real, base[0] * real, exact_base[0] * real, left_out)
    for found, expected, base_gradient, exact_gradient in zip(
        gradients, exact[1], base[1], exact_base[1], strict=False
    ):
        assert_as_good_as_plain(found, expected, base_gradient, exact_gradient, left_out)
    if learns:
        assert_slope_gradients(gradients[3], exact[1][3], case, slopes)


def assert_slope_gradients(found: Tensor, expected: Tensor, case: Case, slopes: Tensor) -> None:
    """Of each head by itself: a head with distant keys has larger terms than the whole gradient of another."""
    assert torch.isfinite(found).all()
    error = (found.double() - expected).abs()
    assert (error <= slope_rounding(case, slopes)).all(), f"gradients of slopes are off by {error.tolist()}"


def slope_rounding(case: Case, slopes: Tensor) -> Tensor:
    """A few float32 roundings of every term of the sum over pairs that a slope's gradient is, ``(H,)``."""
    query, key, value = (tensor.double() for tensor in (case.query, case.key, case.value))
    key, value = (tensor.repeat_interleave(len(slopes) // tensor.shape[1], 1) for tensor in (key, value))
    distance = (torch.arange(query.shape[2])[:, None] - torch.arange(query.shape[2])).double()
    scores = query @ key.mT * query.shape[-1] ** -0.5 - slopes.double()[:, None, None] * distance
    weights = scores.masked_fill(~case.is_seen, -torch.inf).softmax(-1)
    products = case.direction.double() @ value.mT
    mean = (weights * products).sum(-1, keepdim=True)
    terms = weights * (products.abs() + mean.abs()) * distance.clamp(min=0)
    # In half precision, the outputs from which gradients of scores are computed are rounded.
    eps = max(16 * torch.finfo(torch.float32).eps, torch.finfo(case.query.dtype).eps / 16)
    return eps * terms.sum((0, 2, 3))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("back_end", ["sdpa", "flex_attention", "alibi_banded"])
def test_forward_and_gradients(back_end: str, dtype: torch.dtype, head_dim: int, layout: str) -> None:
    check(draw(layout, dtype, 8, 8, head_dim, LENGTH), back_end)


@pytest.mark.parametrize(("num_heads", "length"), [(1, 1), (12, 2), (3, 63), (8, 65), (1, 200), (12, 200)])
@pytest.mark.parametrize("back_end", ["sdpa", "flex_attention", "alibi_banded"])
def test_awkward_lengths_and_heads(back_end: str, num_heads: int, length: int) -> None:
    check(draw("whole", torch.float32, num_heads, num_heads, 32, length), back_end)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("back_end", ["sdpa", "flex_attention", "alibi_banded"])
def test_grouped_queries(back_end: str, dtype: torch.dtype) -> None:
    check(draw("left", dtype, 8, 2, 64, LENGTH), back_end)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("back_end", ["sdpa", "flex_attention", "alibi_banded"])
def test_slopes_that_learn(back_end: str, layout: str) -> None:
    check(draw(layout, torch.float32, 8, 8, 64, LENGTH), back_end, learns=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("back_end", ["sdpa", "alibi_banded"])
def test_slopes_that_learn_in_half_precision(back_end: str, layout: str) -> None:
    check(draw(layout, torch.bfloat16, 8, 4, 64, LENGTH), back_end, learns=True)


@pytest.mark.parametrize("back_end", ["sdpa", "alibi_banded"])
@pytest.mark.parametrize(("num_heads", "length"), [(1, 1), (12, 2), (3, 63), (8, 65), (1, 200), (12, 600)])
def test_awkward_lengths_in_half_precision(num_heads: int, length: int, back_end: str) -> None:
    check(draw("whole", torch.bfloat16, num_heads, num_heads, 80, length), back_end)


@pytest.mark.parametrize("back_end", ["sdpa", "alibi_banded"])
def test_long_texts_take_the_fused_kernels(back_end: str) -> None:
    config = AlibiGPTConfig(hidden_size=32, num_attention_heads=2, attn_implementation=back_end)
    context = context_of(draw("packed", torch.bfloat16, 2, 2, 32, LENGTH), config, DEVICE)
    bias = LayerBias(AlibiPositions(config).to(DEVICE), 0)
    assert isinstance(ATTENTION_BACKENDS[back_end].prepare(context, bias), FusedAttention)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["fused", "augmented", "flex", "banded"])
@torch.no_grad()
def test_long_texts_in_half_precision(name: str, dtype: torch.dtype) -> None:
    """The last queries of 131,072 tokens, which two digits of augmented keys reach, as good as plain attention."""
    q_len, kv_len, num_heads, head_dim = 64, 131_072, 4, 64
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, num_heads, n, head_dim, generator=generator).to(dtype) for n in (q_len, kv_len, kv_len))
    slopes = alibi_slopes(num_heads)
    context = AttentionContext.from_lengths(q_len, kv_len, dtype, torch.device(DEVICE))
    attention = {
        "fused": lambda: FusedAttention(context, slopes[None, None].to(DEVICE), 2**-30),
        "augmented": lambda: AugmentedAttention(context, slopes[None, None].to(DEVICE)),
        "flex": lambda: FlexAttention(context, slopes[None, None].to(DEVICE)),
        "banded": lambda: BandedAttention(context, slopes.to(DEVICE), TOLERANCE),
    }[name]()
    states = [tensor.to(DEVICE) for tensor in (q, k, v)]
    output = attention.attend(*states, head_dim**-0.5, 0.0).cpu()
    base = F.scaled_dot_product_attention(*states, attn_mask=context.mask()).cpu()
    expected, exact_base = exact_attention(q, k, v, slopes), exact_plain_attention(q, k, v, slopes)
    assert_as_good_as_plain(output, expected, base, exact_base, 2 * TOLERANCE if name == "banded" else 0.0)


@pytest.mark.parametrize("back_end", ["sdpa", "flex_attention", "alibi_banded"])
def test_no_matrix_of_pairs(back_end: str) -> None:
    """Forward and backward of 16,384 tokens take less than one matrix of their pairs in bfloat16 for one head."""
    length, num_heads = 16_384, 4
    case = Case(*torch.randn(4, 1, num_heads, length, 64).bfloat16(), *[torch.ones(1, 1, length, 1)] * 2, None, None)
    computed(case, back_end, learns=False)  # compiles, which takes memory of its own
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    computed(case, back_end, learns=False)
    assert torch.cuda.max_memory_allocated() - before < 2 * length * length
