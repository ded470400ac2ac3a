"""Flex attention against float64 loops and the dense mask: biases, blocks, gradients, graphs and refusals."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from modeling_alibi_gpt import attention_flex
from modeling_alibi_gpt.alibi import alibi_slopes
from modeling_alibi_gpt.attention_banded import banded_first_keys, flex_bands
from modeling_alibi_gpt.attention_flex import BLOCK_TOKENS, run_blocks, slope_score_mod
from modeling_alibi_gpt.attention_spans import Span
from tests.attention_cases import ADVERSARIES, SCALING, SPANS, TOLERANCE, adversarial, draw, reference, whole
from tests.exact_cases import BATCHES, make_model


def bands(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, spans: list[Span]) -> Tensor:
    first_keys = banded_first_keys(query, key, slopes.tolist(), spans, SCALING, TOLERANCE)
    return flex_bands(query, key, value, slopes, first_keys, SCALING)


def first_keys_of_spans(spans: list[Span], rows: int, q_len: int, kv_len: int) -> Tensor:
    """``(B, 1, Q)``: all keys of the span, the own key of queries in none."""
    first_keys = torch.arange(kv_len - q_len, kv_len).repeat(rows, 1, 1)
    for span in spans:
        first_keys[span.rows, :, span.queries] = span.first_key
    return first_keys


def random_runs(num_heads: int, q_len: int, kv_len: int, longest: int) -> Tensor:
    own_keys = torch.arange(kv_len - q_len, kv_len)
    lengths = torch.randint(longest, (1, num_heads, q_len), generator=torch.Generator().manual_seed(longest))
    return (own_keys - lengths).clamp(min=0)


RUNS = {
    "causal": (first_keys_of_spans(whole(1, 640), 1, 640, 640), 640),
    "last queries": (first_keys_of_spans(whole(1, 300), 1, 300, 700), 700),
    "one query": (first_keys_of_spans(whole(1, 1), 1, 1, 500), 500),
    "own keys": (first_keys_of_spans([], 2, 260, 390), 390),
    "documents": (first_keys_of_spans([Span(slice(0, 1), slice(0, 130), 0), Span(slice(0, 2), slice(130, 513), 130)],
                                      2, 513, 513), 513),
    "short runs": (random_runs(3, 520, 900, 20), 900),
    "long runs": (random_runs(3, 520, 900, 800), 900),
    "aligned": ((torch.arange(512) // BLOCK_TOKENS * BLOCK_TOKENS)[None, None], 512),
}  # fmt: skip


@pytest.mark.parametrize(("first_keys", "kv_len"), RUNS.values(), ids=RUNS)
def test_counted_blocks_are_those_of_the_matrix(first_keys: Tensor, kv_len: int) -> None:
    """Torch counts them from the matrix of pairs; both numbers of blocks and both lists must be the same."""
    found = run_blocks(first_keys, kv_len)
    expected = torch_flex.create_block_mask(found.mask_mod, *first_keys.shape, kv_len, device="cpu")
    key, query = torch.arange(kv_len), torch.arange(kv_len - first_keys.shape[-1], kv_len)[:, None]
    is_seen = (key >= first_keys[..., None]) & (key <= query)
    pairs = torch_flex.create_mask(found.mask_mod, *first_keys.shape, kv_len, device="cpu")
    assert torch.equal(pairs, is_seen)
    assert found.shape == expected.shape
    for name in ("kv", "full_kv", "q", "full_q"):
        num_blocks = getattr(found, f"{name}_num_blocks")
        assert torch.equal(num_blocks, getattr(expected, f"{name}_num_blocks")), name
        is_counted = torch.arange(getattr(found, f"{name}_indices").shape[-1]) < num_blocks[..., None]
        indices = (getattr(mask, f"{name}_indices").masked_fill(~is_counted, 0) for mask in (found, expected))
        assert torch.equal(*indices), name


@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (1, 200), (63, 63), (65, 200), (300, 300)])
@pytest.mark.parametrize("num_heads", [1, 3, 8])
@torch.no_grad()
def test_bands_equal_the_reference(num_heads: int, q_len: int, kv_len: int) -> None:
    """Sums of a few hundred products of order one, and what the band leaves out."""
    tensors, slopes = [tensor.detach() for tensor in draw(num_heads, q_len, kv_len)], alibi_slopes(num_heads)
    spans = whole(2, q_len)
    error = bands(*tensors, slopes, spans).double() - reference(*tensors, slopes, spans)
    assert error.abs().max() <= 5e-6


@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS)
@torch.no_grad()
def test_bands_of_spans_do_not_see_each_other(spans: list[Span]) -> None:
    """And a query in no span, which is padding, has the value of its own key."""
    tensors, slopes = [tensor.detach() for tensor in draw(3, 150, 150)], alibi_slopes(3)
    expected = tensors[2].double().clone()
    in_spans = reference(*tensors, slopes, spans)
    for span in spans:
        expected[span.rows, :, span.queries] = in_spans[span.rows, :, span.queries]
    torch.testing.assert_close(bands(*tensors, slopes, spans).double(), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
@pytest.mark.parametrize("kind", ADVERSARIES)
@pytest.mark.parametrize("seed", range(4))
def test_no_query_loses_more_weight_than_the_tolerance(kind: str, seed: int, tolerance: float) -> None:
    num_heads, length = 4, 700
    query, key, _ = adversarial(kind, num_heads, length, seed)
    slopes = alibi_slopes(num_heads, beta=(0.5, 1.0, 8.0, 30.0)[seed])
    first_keys = banded_first_keys(query, key, slopes.tolist(), whole(1, length), SCALING, tolerance)
    slots = torch.arange(length)
    distance = (slots[:, None] - slots).double()
    scores = torch.matmul(query[0].double(), key[0].double().mT) * SCALING - slopes.double()[:, None, None] * distance
    weights = scores.masked_fill(distance < 0, -torch.inf).softmax(-1)
    assert weights.masked_fill(slots >= first_keys[0, :, :, None], 0.0).sum(-1).max() <= tolerance


def test_blocks_leave_out_what_is_far() -> None:
    length = 4096
    query, key, _ = (tensor.detach() for tensor in draw(8, length, length, rows=1))
    first_keys = banded_first_keys(query, key, alibi_slopes(8).tolist(), whole(1, length), SCALING, TOLERANCE)
    blocks = run_blocks(first_keys, length)
    num_read = (blocks.kv_num_blocks + blocks.full_kv_num_blocks).sum(-1)[0].tolist()
    num_causal = sum(range(1, length // BLOCK_TOKENS + 1))
    assert num_read == sorted(num_read) and num_read[0] <= 3 * length // BLOCK_TOKENS and num_read[-1] <= num_causal


def test_score_mod_has_the_gradients_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch differentiates its definition of flex attention, though it refuses to on a CPU: what a GPU must give."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *states: None)
    tensors, slopes = [*draw(3, 90, 90)], alibi_slopes(3).requires_grad_()
    slots = torch.arange(90).expand(2, -1)
    blocks = run_blocks(first_keys_of_spans(whole(1, 90), 1, 90, 90).expand(1, 3, -1), 90)
    output = torch_flex.flex_attention(
        *tensors, score_mod=slope_score_mod(slopes, slots, slots), block_mask=blocks, scale=SCALING
    )
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad(output, (*tensors, slopes), direction)
    expected = torch.autograd.grad(reference(*tensors, slopes), (*tensors, slopes), direction.double())
    for gradient, expected_gradient in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=2e-5, rtol=0)
    # A sum over 2 x 90 queries of weighted distances up to 90.
    torch.testing.assert_close(found[3], expected[3], atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("case", ["alibi", "alibi_dynamic_ntk", "t5", "rope"])
@torch.no_grad()
def test_torch_traces_one_graph(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph a GPU would compile, run by torch's definition of each operation."""
    monkeypatch.setattr(attention_flex, "_flex_on_cpu", attention_flex.flex_attention)
    model, batch = make_model(case, "flex_attention"), BATCHES["left"]
    inputs = {"input_ids": batch.token_ids, "attention_mask": batch.visible, "use_cache": False}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("case", ["alibi", "rope"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_generated_tokens_are_those_of_sdpa(case: str, cache: str | None) -> None:
    batch, options = BATCHES["left"], {"max_new_tokens": 6, "do_sample": False, "cache_implementation": cache}
    flexed, expected = (
        make_model(case, back_end).generate(batch.token_ids, attention_mask=batch.visible, **options)
        for back_end in ("flex_attention", "sdpa")
    )
    assert torch.equal(flexed, expected)


def test_refusals_say_what_to_do() -> None:
    model, batch = make_model("alibi", "flex_attention"), BATCHES["whole"]
    with pytest.raises(ValueError, match="no gradients on a CPU: train on sdpa, eager or alibi_banded"):
        model(batch.token_ids)
    length = batch.token_ids.shape[1]
    with torch.no_grad(), pytest.raises(ValueError, match="got one of four, which sdpa and eager take"):
        model(batch.token_ids, attention_mask=torch.ones(1, 1, length, length, dtype=torch.bool).tril())
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.Unsupported, match="does not compile on a CPU"):
        torch.compile(model, fullgraph=True)(batch.token_ids, use_cache=False)
    dropping = make_model("alibi", "flex_attention", attention_dropout=0.1).train()
    with torch.no_grad(), pytest.raises(ValueError, match="no dropout, got attention_dropout=0.1"):
        dropping(batch.token_ids)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["whole", "left", "packed"])
@pytest.mark.parametrize("back_end", ["flex_attention", "alibi_banded"])
@pytest.mark.parametrize("case", ["alibi", "alibi_trained_slopes"])
def test_cuda_logits_and_gradients_are_those_of_the_cpu(case: str, back_end: str, layout: str) -> None:
    """To the rounding of float32 products, which kernels may take in the shorter TF32."""
    results = []
    for name, device in (("eager", "cpu"), (back_end, "cuda")):
        model = make_model(case, name, head_dim=16).to(device)
        batch = BATCHES[layout]
        inputs = (part if part is None else part.to(device) for part in (batch.token_ids, batch.visible))
        token_ids, visible = inputs
        positions = None if batch.position_ids is None else batch.position_ids.to(device)
        logits = model(token_ids, attention_mask=visible, position_ids=positions, use_cache=False).logits
        if visible is not None:
            logits = logits * visible[..., None]
        logits.square().mean().backward()
        gradients = {key: parameter.grad.cpu() for key, parameter in model.named_parameters()}
        results.append({"logits": logits.detach().cpu(), **gradients})
    for key, expected in results[0].items():
        torch.testing.assert_close(results[1][key], expected, atol=2e-2 * expected.abs().max().item(), rtol=0, msg=key)
