"""Flex attention against float64 loops and the dense mask: biases, blocks, gradients, graphs and refusals."""

import inspect
from types import ModuleType
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from modeling_alibi_gpt import attention_blocks, attention_flex
from modeling_alibi_gpt.alibi import alibi_slopes
from modeling_alibi_gpt.attention import ATTENTION_VARIANTS
from modeling_alibi_gpt.attention_blocks import BLOCK_TOKENS, band_blocks, first_blocks_that_matter, run_blocks
from modeling_alibi_gpt.attention_context import AttentionContext
from modeling_alibi_gpt.attention_flex import distance_score_mod, slope_score_mod
from modeling_alibi_gpt.attention_segments import Segment
from tests.support.attention_cases import ADVERSARIES, SCALING, TOLERANCE, adversarial, draw, reference
from tests.support.exact_cases import BATCHES, make_model


def first_keys_of_segments(segments: list[Segment], rows: int, q_len: int, kv_len: int) -> Tensor:
    """``(B, Q)``: all keys of the segment, the own key of queries in none."""
    first_keys = torch.arange(kv_len - q_len, kv_len).repeat(rows, 1)
    for segment in segments:
        first_keys[segment.rows, segment.queries] = segment.first_key
    return first_keys


def random_runs(rows: int, q_len: int, kv_len: int, longest: int) -> Tensor:
    own_keys = torch.arange(kv_len - q_len, kv_len)
    lengths = torch.randint(longest, (rows, q_len), generator=torch.Generator().manual_seed(longest))
    return (own_keys - lengths).clamp(min=0)


# First keys, or None for the first of all; Q and K.
RUNS = {
    "causal": (None, 640, 640),
    "causal, cut short": (None, 300, 300),
    "last queries": (None, 300, 700),
    "one query": (None, 1, 500),
    "own keys": (first_keys_of_segments([], 2, 260, 390), 260, 390),
    "documents": (first_keys_of_segments([Segment(slice(0, 1), slice(0, 130), 0),
                                          Segment(slice(0, 2), slice(130, 513), 130)], 2, 513, 513), 513, 513),
    "short runs": (random_runs(3, 520, 900, 20), 520, 900),
    "long runs": (random_runs(3, 520, 900, 800), 520, 900),
    "aligned": ((torch.arange(512) // BLOCK_TOKENS * BLOCK_TOKENS)[None], 512, 512),
}  # fmt: skip


@pytest.mark.parametrize(("first_keys", "q_len", "kv_len"), RUNS.values(), ids=RUNS)
def test_counted_blocks_are_those_of_the_matrix(first_keys: Tensor | None, q_len: int, kv_len: int) -> None:
    """Torch counts them from the matrix of pairs; both numbers of blocks and both lists must be the same."""
    found = run_blocks(q_len, kv_len, torch.device("cpu"), first_keys)
    starts = torch.zeros(1, q_len, dtype=torch.long) if first_keys is None else first_keys
    shape = (len(starts), 1, q_len, kv_len)
    expected = torch_flex.create_block_mask(found.mask_mod, *shape, device="cpu")
    key, query = torch.arange(kv_len), torch.arange(kv_len - q_len, kv_len)[:, None]
    is_seen = (key >= starts[:, None, :, None]) & (key <= query)
    assert torch.equal(torch_flex.create_mask(found.mask_mod, *shape, device="cpu"), is_seen)
    assert found.shape == expected.shape
    for name in ("kv", "full_kv", "q", "full_q"):
        num_blocks = getattr(found, f"{name}_num_blocks")
        assert torch.equal(num_blocks, getattr(expected, f"{name}_num_blocks")), name
        is_counted = torch.arange(getattr(found, f"{name}_indices").shape[-1]) < num_blocks[..., None]
        indices = (getattr(mask, f"{name}_indices").masked_fill(~is_counted, 0) for mask in (found, expected))
        assert torch.equal(*indices), name


def pairs_read(blocks: torch_flex.BlockMask, num_rows: int, num_heads: int, q_len: int, kv_len: int) -> Tensor:
    """``(B, H, Q, K)``: pairs of the blocks that a kernel reads, where the mask lets them see each other."""
    size = blocks.kv_indices.shape[-1]
    is_counted = [torch.arange(size) < num[..., None] for num in (blocks.kv_num_blocks, blocks.full_kv_num_blocks)]
    is_read = torch.zeros(blocks.kv_indices.shape, dtype=torch.int)
    for indices, counted in zip((blocks.kv_indices, blocks.full_kv_indices), is_counted, strict=True):
        is_read.scatter_add_(-1, indices.long(), counted.int())
    assert is_read.max() <= 1
    by_token = is_read.bool().repeat_interleave(BLOCK_TOKENS, -1).repeat_interleave(BLOCK_TOKENS, -2)
    is_seen = torch_flex.create_mask(blocks.mask_mod, num_rows, num_heads, q_len, kv_len, device="cpu")
    return by_token[..., :q_len, :kv_len] & is_seen


def weight_left_out(
    query: Tensor, key: Tensor, slopes: Tensor, first_keys: Tensor | None, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Of every query ``(B, H, Q)``, by the float64 definition; and the share of visible pairs that are read."""
    (num_rows, num_heads, q_len), kv_len = query.shape[:3], key.shape[2]
    read = pairs_read(
        band_blocks(query, key, slopes, SCALING, tolerance, first_keys), num_rows, num_heads, q_len, kv_len
    )
    distance = (torch.arange(kv_len - q_len, kv_len)[:, None] - torch.arange(kv_len)).double()
    scores = torch.matmul(query.double(), key.double().mT) * SCALING - slopes.double()[:, None, None] * distance
    is_seen = distance >= 0
    if first_keys is not None:
        is_seen = is_seen & (torch.arange(kv_len) >= first_keys[:, None, :, None])
    weights = scores.masked_fill(~is_seen, -torch.inf).softmax(-1)
    return weights.masked_fill(read, 0.0).sum(-1), read.double().sum() / is_seen.expand_as(read).sum()


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
@pytest.mark.parametrize("kind", ADVERSARIES)
@pytest.mark.parametrize("seed", range(4))
def test_no_query_loses_more_weight_than_the_tolerance(kind: str, seed: int, tolerance: float) -> None:
    num_heads, length = 4, 1300
    query, key, _ = adversarial(kind, num_heads, length, seed)
    slopes = alibi_slopes(num_heads, beta=(0.5, 1.0, 8.0, 30.0)[seed])
    assert weight_left_out(query, key, slopes, None, tolerance)[0].max() <= tolerance


@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (1, 700), (63, 63), (65, 1200), (700, 1500)])
@pytest.mark.parametrize("num_heads", [1, 3, 8, 12])
def test_last_queries_lose_no_more_either(num_heads: int, q_len: int, kv_len: int) -> None:
    query, key, _ = (tensor.detach() for tensor in draw(num_heads, q_len, kv_len))
    assert weight_left_out(query, key, alibi_slopes(num_heads, beta=4.0), None, TOLERANCE)[0].max() <= TOLERANCE


@pytest.mark.parametrize("kind", ADVERSARIES)
def test_queries_of_documents_and_of_padded_rows_lose_no_more_either(kind: str) -> None:
    """What others' keys add to the bound makes it wider; the divisor may count keys only that the query sees."""
    query, key, _ = (states.repeat(2, 1, 1, 1) for states in adversarial(kind, 4, 1300, seed=5))
    segments = [Segment(slice(0, 1), slice(0, 300), 0), Segment(slice(0, 1), slice(300, 1300), 300),
                Segment(slice(1, 2), slice(450, 1300), 450)]  # fmt: skip
    first_keys = first_keys_of_segments(segments, 2, 1300, 1300)
    lost, _ = weight_left_out(query, key, alibi_slopes(4, beta=8.0), first_keys, TOLERANCE)
    assert lost.max() <= TOLERANCE


def test_blocks_leave_out_what_is_far() -> None:
    length = 4096
    query, key, _ = (tensor.detach() for tensor in draw(8, length, length, rows=1))
    first_blocks = first_blocks_that_matter(query, key, alibi_slopes(8), SCALING, TOLERANCE)
    num_read = (torch.arange(length // BLOCK_TOKENS) + 1 - first_blocks).sum(-1)[0].tolist()
    num_causal = sum(range(1, length // BLOCK_TOKENS + 1))
    assert num_read == sorted(num_read) and num_read[0] <= 3 * length // BLOCK_TOKENS and num_read[-1] <= num_causal
    tighter = weight_left_out(query, key, alibi_slopes(8, beta=8.0), None, TOLERANCE)[1]
    assert tighter < 0.25


def test_compiled_bands_are_the_same() -> None:
    """In one graph for any length; a bound that is rounded otherwise may move a band by a block, and no further."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled = torch.compile(attention_blocks._band_lists, fullgraph=True, backend=counter)
    slopes = alibi_slopes(3, beta=8.0)
    for length in (700, 900, 1300):
        query, key, _ = (tensor.detach() for tensor in draw(3, length, length + 100))
        found = compiled(query, key, slopes, SCALING, TOLERANCE, None)
        expected = attention_blocks._band_lists(query, key, slopes, SCALING, TOLERANCE, None)
        assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
        for counts, expected_counts in zip(found[::2], expected[::2], strict=True):
            assert (counts - expected_counts).abs().max() <= 1
    assert counter.frame_count == 2


@pytest.mark.parametrize("takes_limit", [False, True])
@pytest.mark.parametrize(
    ("module", "name"),
    [(attention_blocks, "_band_lists"), (attention_flex, "create_block_mask"), (attention_flex, "flex_attention")],
)
def test_one_process_compiles_many_kinds_of_text(
    module: ModuleType, name: str, takes_limit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than torch's default limit of eight, with and without ``torch.compile``'s own argument for it."""
    num_kinds, graphs, compile_function = 12, [], torch.compile

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    def compile_without_limit(function: Any, fullgraph: bool = False) -> Any:
        return compile_function(function, fullgraph=fullgraph, backend=count)

    def compile_with_limit(function: Any, recompile_limit: int | None = None, fullgraph: bool = False) -> Any:
        if "recompile_limit" not in inspect.signature(compile_function).parameters:
            pytest.skip("this torch has no such argument")
        return compile_function(function, fullgraph=fullgraph, recompile_limit=recompile_limit, backend=count)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", compile_with_limit if takes_limit else compile_without_limit)
    monkeypatch.setattr(module, name, lambda states: states + 1)
    run = getattr(module, f"_compiled_{name.removeprefix('_')}").__wrapped__()
    for num_dims in range(num_kinds):
        run(torch.zeros([2] * num_dims))
    assert len(graphs) == num_kinds


@pytest.mark.parametrize("by_position", [False, True])
def test_score_mod_has_the_gradients_of_the_reference(by_position: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch differentiates its definition of flex attention, though it refuses to on a CPU: what a GPU must give."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *states: None)
    tensors, slopes = [*draw(3, 90, 90)], alibi_slopes(3).requires_grad_()
    slots = torch.arange(90).expand(2, -1)
    score_mod = slope_score_mod(slopes, slots, slots) if by_position else distance_score_mod(slopes, 0)
    output = torch_flex.flex_attention(
        *tensors, score_mod=score_mod, block_mask=run_blocks(90, 90, torch.device("cpu")), scale=SCALING
    )
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad(output, (*tensors, slopes), direction)
    expected = torch.autograd.grad(reference(*tensors, slopes), (*tensors, slopes), direction.double())
    for gradient, expected_gradient in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=2e-5, rtol=0)
    # A sum over 2 x 90 queries of weighted distances up to 90.
    torch.testing.assert_close(found[3], expected[3], atol=1e-3, rtol=1e-5)


def test_score_mod_subtracts_before_it_rounds() -> None:
    positions = 2**24 + torch.arange(8)[None]
    score_mod = slope_score_mod(torch.ones(1), positions, positions)
    index = torch.tensor(0)
    biases = [score_mod(torch.tensor(0.0), index, index, torch.tensor(7), torch.tensor(key)) for key in range(8)]
    assert [float(bias) for bias in biases] == [-7, -6, -5, -4, -3, -2, -1, 0]


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
    with pytest.raises(ValueError, match="no gradients on a CPU: train with sdpa, eager or alibi_banded"):
        model(batch.token_ids)
    length = batch.token_ids.shape[1]
    with torch.no_grad(), pytest.raises(ValueError, match="got a 4D mask: use sdpa or eager"):
        model(batch.token_ids, attention_mask=torch.ones(1, 1, length, length, dtype=torch.bool).tril())
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.Unsupported, match="does not compile on a CPU"):
        torch.compile(model, fullgraph=True)(batch.token_ids, use_cache=False)
    dropping = make_model("alibi", "flex_attention", attention_dropout=0.1).train()
    with torch.no_grad(), pytest.raises(ValueError, match="no dropout, got attention_dropout=0.1"):
        dropping(batch.token_ids)


@pytest.mark.parametrize("variant", ["flex", "banded"])
def test_small_heads_are_refused_on_a_gpu(variant: str) -> None:
    """Before Inductor fails on them; the device here is meta."""
    states = torch.empty(1, 2, 9, 8, device="meta")
    attention = ATTENTION_VARIANTS[variant](AttentionContext.from_lengths(9, 9, torch.float32), alibi_slopes(2), 1e-6)
    with pytest.raises(ValueError, match="head_dim of at least 16 on a GPU, got 8: use sdpa or eager"):
        attention.attend(states, states, states, SCALING, 0.0)
