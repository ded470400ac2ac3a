"""Attention variants for long texts against float64 loops: strips, augmented keys and bands, forward and gradient."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import CausalBias

from modeling_alibi_gpt import attention_augmented
from modeling_alibi_gpt.alibi import alibi_slopes
from modeling_alibi_gpt.attention import ATTENTION_VARIANTS
from modeling_alibi_gpt.attention_augmented import augmented_attention
from modeling_alibi_gpt.attention_banded import score_margins
from modeling_alibi_gpt.attention_bounds import exact_tolerance
from modeling_alibi_gpt.attention_context import AttentionContext
from modeling_alibi_gpt.attention_segments import Segment
from modeling_alibi_gpt.attention_strips import whole_tiles
from tests.support.attention_cases import (
    ADVERSARIES,
    HEAD_DIM,
    SCALING,
    SEGMENTS,
    TOLERANCE,
    adversarial,
    band_tiles,
    dense_reference,
    draw,
    pairs_read,
    reference,
    whole,
)
from tests.support.strips import strip_attention


LENGTHS = (1, 2, 63, 65, 200)
HEADS = (1, 3, 8, 12)


def strips(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, segments: list[Segment], chunk: int = 48
) -> Tensor:
    tiles = whole_tiles(segments, query.shape[1], key.shape[2] - query.shape[2], chunk)
    return strip_attention(query, key, value, slopes, tiles, SCALING)


def bands(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, segments: list[Segment]) -> Tensor:
    tiles = band_tiles(query, key, slopes, segments, TOLERANCE)
    return strip_attention(query, key, value, slopes, tiles, SCALING)


def masked(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, segments: list[Segment]) -> Tensor:
    """By one reach for all queries of a head, as short texts go, and nothing lost that float32 could tell."""
    tiles = band_tiles(query, key, slopes, segments, exact_tolerance(query.dtype), by_block=False)
    return strip_attention(query, key, value, slopes, tiles, SCALING)


def augmented(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, segments: list[Segment]) -> Tensor:
    """The back end gives no mask where queries and keys are the same tokens."""
    q_len, kv_len = query.shape[2], key.shape[2]
    positions = torch.arange(kv_len)
    mask = None
    if q_len != kv_len or segments != whole(query.shape[0], q_len):
        mask = torch.zeros(query.shape[0], 1, q_len, kv_len, dtype=torch.bool)
        for segment in segments:
            mask[segment.rows, :, segment.queries, segment.first_key : segment.queries.stop + kv_len - q_len] = True
        mask &= positions[kv_len - q_len :, None] >= positions
        mask |= ~mask.any(-1, keepdim=True)
    return augmented_attention(
        query, key, value, slopes[None, None], positions[None, kv_len - q_len :], positions[None], mask, SCALING
    )


# As a long text meets them, forced on short ones.
FORCED_VARIANTS: dict[str, Callable[..., Tensor]] = {
    "strips": strips,
    "bands": bands,
    "masked": masked,
    "augmented": augmented,
}


def assert_equals_reference(variant: str, tensors: list[Tensor], slopes: Tensor, segments: list[Segment]) -> None:
    """Far inside what float32 may cost.

    A score sums 16 products of 12 nats at most together, which rounds it by up to 16 * 12 * eps / 2 = 1e-5 nats, and
    the output by twice that times the largest value of 4.5: 1e-4. Asserted is a twentieth of it, and for gradients,
    which pass through such sums twice, a fifth.
    """
    output = FORCED_VARIANTS[variant](*tensors, slopes, segments)
    expected = reference(*tensors, slopes, segments)
    in_segments = torch.zeros(output.shape[0], output.shape[2], dtype=torch.bool)
    for segment in segments:
        in_segments[segment.rows, segment.queries] = True
    visible = in_segments[:, None, :, None]
    assert torch.isfinite(output).all()
    torch.testing.assert_close(output.double() * visible, expected, atol=5e-6, rtol=0)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)) * visible
    gradients = torch.autograd.grad(output, tensors, direction)
    expected_gradients = torch.autograd.grad(expected, tensors, direction.double())
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=2e-5, rtol=0)


@pytest.mark.parametrize("variant", FORCED_VARIANTS)
@pytest.mark.parametrize(("num_heads", "length"), list(itertools.product(HEADS, LENGTHS)))
def test_every_length_and_head_count(variant: str, num_heads: int, length: int) -> None:
    assert_equals_reference(variant, draw(num_heads, length, length), alibi_slopes(num_heads), whole(2, length))


@pytest.mark.parametrize("variant", ATTENTION_VARIANTS)
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (1, 200), (65, 65), (65, 200), (600, 600)])
def test_every_variant_of_the_table(variant: str, q_len: int, kv_len: int) -> None:
    """The bound of ``assert_equals_reference``, and what `banded` may leave out: its share of the largest value."""
    query, key, value = (tensor.detach() for tensor in draw(3, q_len, kv_len, rows=1))
    context, slopes = AttentionContext.from_lengths(q_len, kv_len, torch.float32), alibi_slopes(3)
    output = ATTENTION_VARIANTS[variant](context, slopes, TOLERANCE).attend(query, key, value, SCALING, 0.0)
    left_out = 2 * TOLERANCE * value.abs().max().item() if variant == "banded" else 0.0
    expected = dense_reference(query, key, value, slopes)
    torch.testing.assert_close(output.double(), expected, atol=5e-6 + left_out, rtol=0)


@pytest.mark.parametrize("variant", FORCED_VARIANTS)
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 200), (5, 64), (64, 65), (65, 200), (130, 131)])
def test_queries_are_the_last_of_the_keys(variant: str, q_len: int, kv_len: int) -> None:
    assert_equals_reference(variant, draw(3, q_len, kv_len), alibi_slopes(3), whole(2, q_len))


@pytest.mark.parametrize("variant", FORCED_VARIANTS)
@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
def test_segments_do_not_see_each_other(variant: str, segments: list[Segment]) -> None:
    assert_equals_reference(variant, draw(3, 150, 150), alibi_slopes(3), segments)


@pytest.mark.parametrize("variant", FORCED_VARIANTS)
def test_slopes_have_the_gradient_of_the_reference(variant: str) -> None:
    slopes = alibi_slopes(3).requires_grad_()
    tensors = draw(3, 90, 90)
    direction = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(0))
    output = FORCED_VARIANTS[variant](*tensors, slopes, whole(2, 90))
    (gradient,) = torch.autograd.grad(output, slopes, direction)
    (expected,) = torch.autograd.grad(reference(*tensors, slopes), slopes, direction.double())
    # A sum over 2 x 90 queries of weighted distances up to 90.
    torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("variant", FORCED_VARIANTS)
def test_other_dtypes(variant: str, dtype: torch.dtype) -> None:
    """At most twice the error of plain causal attention in that dtype, in units of the output's size."""
    tensors = [tensor.detach() for tensor in draw(8, 400, 400, dtype)]
    slopes = alibi_slopes(8)
    errors = []
    for output, expected in (
        (FORCED_VARIANTS[variant](*tensors, slopes, whole(2, 400)), reference(*tensors, slopes)),
        (F.scaled_dot_product_attention(*tensors, is_causal=True), reference(*tensors, torch.zeros(8))),
    ):
        assert output.dtype == dtype
        error = output.double() - expected
        errors.append((error.abs().max() / expected.abs().max(), error.norm() / expected.norm()))
    # Kernels keep scores in float32 or better: of 8 nats where a weight counts, or slope times length where a kernel
    # adds augmented keys in an order of its own. And a band leaves weights out, in float64 too.
    size = 0.5 * 400 if variant == "augmented" else 8
    rounding = size * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    left_out = 2 * TOLERANCE if variant == "bands" else 0.0
    for error, plain in zip(*errors, strict=True):
        assert error <= 2 * plain + rounding + left_out


def test_slopes_that_differ_by_query_go_by_augmented_keys() -> None:
    tensors = draw(3, 80, 80)
    factor = (torch.arange(80) + 1).clamp(min=20) / 20
    slopes = alibi_slopes(3)[None, None] / factor[None, :, None]
    positions = torch.arange(80)
    output = augmented_attention(*tensors, slopes, positions[None], positions[None], None, SCALING)
    distance = (positions[:, None] - positions).double()
    scores = torch.matmul(tensors[0].double(), tensors[1].double().mT) * SCALING
    scores = scores - slopes.double().transpose(1, 2)[..., None] * distance
    expected = scores.masked_fill(distance < 0, -torch.inf).softmax(-1) @ tensors[2].double()
    torch.testing.assert_close(output.double(), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("q_len", "kv_len", "has_mask"), [(130, 130, False), (130, 130, True), (130, 200, True)])
def test_augmented_keys_in_chunks(
    q_len: int, kv_len: int, has_mask: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of half precision, with and without a mask, are the one call."""
    tensors = draw(3, q_len, kv_len, dtype)
    positions = torch.arange(kv_len)
    query_positions = positions[None, kv_len - q_len :]
    mask = (query_positions[0, :, None] >= positions)[None, None] if has_mask else None
    outputs, gradients = [], []
    for chunk_tokens in (2048, 48):
        monkeypatch.setattr(attention_augmented, "_HALF_CHUNK_TOKENS", chunk_tokens)
        monkeypatch.setattr(attention_augmented, "_CHUNK_TOKENS", chunk_tokens)  # of float16, as of float32
        outputs.append(
            augmented_attention(*tensors, alibi_slopes(3)[None, None], query_positions, positions[None], mask, SCALING)
        )
        gradients.append(torch.autograd.grad(outputs[-1].float().square().sum(), tensors))
    # Two roundings to the dtype of numbers of order one, and what they make of the gradients.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(outputs[0], outputs[1], atol=2 * unit, rtol=2 * unit)
    for one, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(one, chunked, atol=16 * unit, rtol=16 * unit)


def test_augmented_keys_do_not_lean_on_the_order_in_which_a_kernel_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of one that adds in any order are those of a short text, however long it is."""
    attend = F.scaled_dot_product_attention

    def out_of_order(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, **options: Any) -> Tensor:
        order = torch.randperm(query.shape[-1], generator=torch.Generator().manual_seed(0))
        if isinstance(attn_mask, CausalBias):
            attn_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
        return attend(query[..., order], key[..., order], value, attn_mask=attn_mask, **options)

    query, key, value = (tensor.detach() for tensor in draw(8, 1537, 1537, rows=1))
    slopes = alibi_slopes(8, beta=64.0)
    expected = dense_reference(query, key, value, slopes)
    errors = {}
    monkeypatch.setattr(F, "scaled_dot_product_attention", out_of_order)
    for chunk_tokens in (attention_augmented._CHUNK_TOKENS, 1537):
        monkeypatch.setattr(attention_augmented, "_CHUNK_TOKENS", chunk_tokens)
        error = (augmented(query, key, value, slopes, whole(1, 1537)).double() - expected).abs()
        errors[chunk_tokens] = error.amax((0, 1, 3))
    chunked, at_once = errors.values()
    assert chunked.max() <= 2 * chunked[: attention_augmented._CHUNK_TOKENS].max()
    assert at_once.max() > 4 * chunked.max()


@pytest.mark.parametrize("beta", [1.0, 64.0])
def test_augmented_keys_compiled_are_as_exact_as_not(beta: float) -> None:
    """A compiler may not round where the code says so; slopes must come apart into pieces all the same."""
    torch._dynamo.reset()
    tensors = [tensor.detach() for tensor in draw(12, 1100, 1100, rows=1)]
    slopes, positions = alibi_slopes(12, beta=beta)[None, None], torch.arange(1100)[None]
    arguments = (*tensors, slopes, positions, positions, None, SCALING)
    output = torch.compile(augmented_attention, fullgraph=True, dynamic=True)(*arguments)
    error = (output.double() - dense_reference(*tensors, slopes[0, 0])).abs().max()
    plain = F.scaled_dot_product_attention(*tensors, is_causal=True, scale=SCALING)
    plain_error = (plain.double() - dense_reference(*tensors, torch.zeros(12))).abs().max()
    assert error <= 2 * plain_error


@pytest.mark.parametrize("first", [0, 1_000_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_augmented_keys_at_far_positions(dtype: torch.dtype, first: int) -> None:
    """Only differences count: the first position of the text must not."""
    tensors = [tensor.detach() for tensor in draw(8, 300, 300, dtype)]
    slopes = alibi_slopes(8)[None, None]
    outputs = [
        augmented_attention(*tensors, slopes, positions[None], positions[None], None, SCALING)
        for positions in (torch.arange(300), torch.arange(first, first + 300))
    ]
    torch.testing.assert_close(outputs[0], outputs[1], atol=0, rtol=0)


@pytest.mark.parametrize(("kv_len", "num_dims"), [(131_072, 6), (131_073, 9), (400_000, 9)])
@pytest.mark.parametrize("beta", [1.0, 1e6])
def test_products_of_digits_are_the_bias(beta: float, kv_len: int, num_dims: int) -> None:
    """Of every distance: factors that the format holds exactly, whose float32 products are exact too."""
    keys = torch.arange(kv_len)
    slopes, dtype = alibi_slopes(12, beta=beta), torch.bfloat16
    query, key = attention_augmented._distance_digits(slopes[None, None], keys[None, -1:], keys[None], dtype)
    assert query.shape == (1, 12, 1, num_dims) and key.shape == (1, 1, kv_len, num_dims)
    bias = torch.matmul(query[0].double(), key[0, 0].double().T)[:, 0]
    expected = -slopes.double()[:, None] * (kv_len - 1 - keys)
    assert torch.equal(bias, expected)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6, 2**-30])
@pytest.mark.parametrize("kind", ADVERSARIES)
@pytest.mark.parametrize("seed", range(4))
def test_no_query_loses_more_weight_than_the_tolerance(kind: str, seed: int, tolerance: float) -> None:
    """The bound is proved; here it meets queries and keys that were made to break it."""
    num_heads, length = 4, 700
    query, key, value = adversarial(kind, num_heads, length, seed)
    slopes = alibi_slopes(num_heads, beta=(0.5, 1.0, 8.0, 30.0)[seed])
    tiles = band_tiles(query, key, slopes, whole(1, length), tolerance)
    is_read = pairs_read(tiles, num_heads, length)
    distance = (torch.arange(length)[:, None] - torch.arange(length)).double()
    scores = torch.matmul(query[0].double(), key[0].double().mT) * SCALING - slopes.double()[:, None, None] * distance
    weights = scores.masked_fill(distance < 0, -torch.inf).softmax(-1)
    assert weights.masked_fill(is_read, 0.0).sum(-1).max() <= tolerance
    output = strip_attention(query, key, value, slopes, tiles, SCALING)
    error = (output[0].double() - weights @ value[0].double()).norm(dim=-1).max()
    # What float32 itself loses: scores of size s round by s * eps, and weights by as much.
    rounding = 8 * torch.finfo(torch.float32).eps * max(1.0, scores[:, distance >= 0].abs().max().item())
    assert error <= 2 * (tolerance + rounding) * value.norm(dim=-1).max()


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("kind", ["sink", "distant lover", "hated neighbors"])
def test_no_row_of_a_batch_loses_more_weight_than_the_tolerance(kind: str, is_last: bool) -> None:
    """The other row has queries and keys near 0, which bound nothing of this one."""
    length, tolerance = 700, 1e-6
    if kind == "hated neighbors":  # queries love all keys but the last ones
        direction = F.normalize(torch.randn(HEAD_DIM, generator=torch.Generator().manual_seed(0)), dim=0)
        key = 40 * torch.where(torch.arange(length)[:, None] < 576, direction, -direction)[None, None]
        query, slopes = 4 * direction.expand_as(key), torch.tensor([0.5])
    else:
        query, key, _ = adversarial(kind, 4, length, seed=0)
        slopes = alibi_slopes(4, beta=8.0)
    sizes = torch.tensor([1e-3, 1.0] if is_last else [1.0, 1e-3])[:, None, None, None]
    query, key = sizes * query, sizes * key
    is_read = pairs_read(band_tiles(query, key, slopes, whole(2, length), tolerance), len(slopes), length)
    distance = (torch.arange(length)[:, None] - torch.arange(length)).double()
    scores = torch.matmul(query.double(), key.double().mT) * SCALING - slopes.double()[:, None, None] * distance
    weights = scores.masked_fill(distance < 0, -torch.inf).softmax(-1)
    assert weights.masked_fill(is_read, 0.0).sum(-1).max() <= tolerance


def test_bands_leave_out_what_is_far() -> None:
    length = 4096
    query, key, _ = (tensor.detach() for tensor in draw(8, length, length, rows=1))
    tiles = band_tiles(query, key, alibi_slopes(8), whole(1, length), TOLERANCE)
    num_read = pairs_read(tiles, 8, length).tril().sum((1, 2)).tolist()
    assert num_read[0] < 128 * length and num_read == sorted(num_read)


def test_a_shift_of_all_keys_changes_no_margin() -> None:
    """Which is why a common direction of trained keys costs nothing."""
    query, key, _ = (tensor.detach() for tensor in draw(4, 300, 300))
    slopes = alibi_slopes(4)
    shift = 3 * torch.randn(1, 4, 1, HEAD_DIM, generator=torch.Generator().manual_seed(3))
    before, after = (score_margins(query, keys, slopes, SCALING) for keys in (key, key + shift))
    torch.testing.assert_close(before, after, atol=0.02, rtol=0)


def test_scores_without_bound_read_every_key() -> None:
    query, key, _ = (tensor.detach() for tensor in draw(4, 300, 300))
    key[0, 0, 5] = torch.inf
    tiles = band_tiles(query, key, alibi_slopes(4), whole(2, 300), TOLERANCE)
    assert pairs_read(tiles, 4, 300)[0].tril().sum() == 300 * 301 / 2


@pytest.mark.parametrize("variant", ["strips", "banded"])
def test_second_derivatives_are_refused(variant: str) -> None:
    """They would lack the terms of attention."""
    query, key, value = draw(2, 80, 80)
    context = AttentionContext.from_lengths(80, 80, torch.float32)
    attention = ATTENTION_VARIANTS[variant](context, alibi_slopes(2), TOLERANCE)
    loss = attention.attend(query[:1], key[:1], value[:1], SCALING, 0.0).square().sum()
    with pytest.raises(RuntimeError, match="has no second derivatives: set attn_implementation='eager'"):
        torch.autograd.grad(loss, query, create_graph=True)
