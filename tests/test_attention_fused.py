"""Fused kernels, run by Triton's interpreter: forward and gradients against the float64 loop, and what they skip."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_alibi_gpt import AlibiGPTConfig, attention, attention_fused, attention_launch
from modeling_alibi_gpt.alibi import alibi_slopes
from modeling_alibi_gpt.attention_augmented import AugmentedAttention
from modeling_alibi_gpt.attention_context import AttentionContext, attention_context
from modeling_alibi_gpt.attention_fused import FusedAttention, can_fuse, fused_attention
from modeling_alibi_gpt.attention_inputs import ForwardInputs
from modeling_alibi_gpt.attention_segments import Segment
from tests.support.attention_cases import (
    ADVERSARIES,
    HEAD_DIM,
    SCALING,
    SEGMENTS,
    TOLERANCE,
    adversarial,
    draw,
    reference,
)
from tests.support.exact_cases import BATCHES, make_model
from tests.test_modeling_exact import FEEDS, expected_logits, max_error


pytest.importorskip("triton", reason="the kernels are written in Triton", exc_type=ImportError)

# Outside its interpreter, Triton refuses CPU tensors. tests/conftest.py sets the variable where there is no GPU.
interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter: no GPU, or TRITON_INTERPRET=1"
)
LENGTHS = [(1, 1), (2, 2), (63, 63), (65, 65), (200, 200), (1, 200), (65, 200)]


@pytest.fixture(autouse=True)
def skip_keys_of_short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_launch, "MIN_SKIPPED_TOKENS", 2)


def first_keys_of(segments: list[Segment], rows: int, q_len: int, offset: int = 0) -> Tensor:
    """First key that each query sees; queries in no segment see their own."""
    first_keys = (torch.arange(q_len, dtype=torch.int32) + offset).repeat(rows, 1)
    for segment in segments:
        first_keys[segment.rows, segment.queries] = segment.first_key
    return first_keys


def assert_equals_reference(
    tensors: list[Tensor], slopes: Tensor, segments: list[Segment] | None = None, num_groups: int = 1
) -> None:
    """Output and gradients of queries, keys, values and slopes, to float32 rounding."""
    query, key, value = tensors
    slopes = slopes.clone().requires_grad_()
    first_keys = None if segments is None else first_keys_of(segments, query.shape[0], query.shape[2])
    output = fused_attention(query, key, value, slopes[None], SCALING, 2**-30, first_keys)
    shared = [states.repeat_interleave(num_groups, dim=1) for states in (key, value)]
    expected = reference(query, *shared, slopes, segments)
    is_real = torch.ones_like(output, dtype=torch.bool)
    if segments is not None:
        is_real = ~(expected == 0)
        own_values = shared[1][:, :, -query.shape[2] :]
        torch.testing.assert_close(output[~is_real], own_values[~is_real], atol=1e-6, rtol=0)
    torch.testing.assert_close(output[is_real].double(), expected[is_real], atol=5e-6, rtol=0)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)) * is_real
    found, exact = (
        torch.autograd.grad(result, (query, key, value, slopes), direction.to(result.dtype))
        for result in (output, expected)
    )
    for gradient, expected_gradient in zip(found, exact, strict=True):
        scale = max(1.0, expected_gradient.abs().max().item())
        torch.testing.assert_close(gradient.double(), expected_gradient.double(), atol=1e-5 * scale, rtol=0)


@interpreted
@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
@pytest.mark.parametrize("num_heads", [1, 3])
def test_lengths(num_heads: int, q_len: int, kv_len: int) -> None:
    assert_equals_reference(draw(num_heads, q_len, kv_len), alibi_slopes(num_heads))


@interpreted
@pytest.mark.parametrize("num_heads", [8, 12])
def test_many_heads(num_heads: int) -> None:
    assert_equals_reference(draw(num_heads, 65, 65, rows=1), alibi_slopes(num_heads))


@interpreted
@pytest.mark.parametrize("name", SEGMENTS)
def test_segments(name: str) -> None:
    assert_equals_reference(draw(2, 150, 150), alibi_slopes(2), SEGMENTS[name])


@interpreted
@pytest.mark.parametrize(("q_len", "kv_len"), [(65, 65), (40, 200)])
def test_grouped_queries(q_len: int, kv_len: int) -> None:
    query, (key, value) = draw(6, q_len, kv_len)[0], draw(2, q_len, kv_len)[1:]
    assert_equals_reference([query, key, value], alibi_slopes(6), num_groups=3)


@interpreted
def test_slopes_of_each_row() -> None:
    tensors, slopes = draw(2, 65, 65), torch.stack([alibi_slopes(2), 3 * alibi_slopes(2)]).requires_grad_()
    output = fused_attention(*tensors, slopes, SCALING, 2**-30)
    expected = torch.cat([reference(*(tensor[i : i + 1] for tensor in tensors), slopes[i]) for i in range(2)])
    torch.testing.assert_close(output.double(), expected, atol=5e-6, rtol=0)
    found, exact = (torch.autograd.grad(result.square().sum(), slopes)[0] for result in (output, expected))
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-4)


@interpreted
def test_states_in_any_layout() -> None:
    """Views of one projection, a head size that is no power of two, and keys that heads share by a stride of 0."""
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(2, 70, 2, 72, generator=generator).requires_grad_()
    query, key, value = projected.transpose(1, 2).split(24, dim=-1)
    slopes = alibi_slopes(2)
    found = fused_attention(query, key[:, :1].expand(-1, 2, -1, -1), value, slopes[None], SCALING, 2**-30)
    expected = reference(query, key[:, :1].expand(-1, 2, -1, -1), value, slopes)
    torch.testing.assert_close(found.double(), expected, atol=5e-6, rtol=0)
    gradients = [torch.autograd.grad(result.square().sum(), projected)[0] for result in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@interpreted
def test_half_precision() -> None:
    """As near the float64 loop as torch's attention with the bias in a mask. The interpreter has no bfloat16."""
    dtype = torch.float16
    tensors, slopes = draw(3, 200, 200, dtype), alibi_slopes(3)
    distance = torch.arange(200)[:, None] - torch.arange(200)
    mask = (-slopes[:, None, None] * distance).masked_fill(distance < 0, -torch.inf).to(dtype)
    direction = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    outputs = {
        "fused": fused_attention(*tensors, slopes[None], SCALING, 2**-30),
        "masked": F.scaled_dot_product_attention(*tensors, attn_mask=mask[None], scale=SCALING),
        "exact": reference(*tensors, slopes),
    }
    results = {
        name: (output, *torch.autograd.grad(output, tensors, direction.to(output.dtype), retain_graph=True))
        for name, output in outputs.items()
    }
    for fused, masked, exact in zip(*(results[name] for name in ("fused", "masked", "exact")), strict=True):
        assert (fused.double() - exact).norm() <= 1.2 * (masked.double() - exact).norm()


def starts_of(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, tolerance: float) -> Tensor:
    """First key that each tile of queries reads, ``(H, M)``."""
    output = fused_attention(query.requires_grad_(), key, value, slopes[None], SCALING, tolerance)
    return next(tensor for tensor in output.grad_fn.saved_tensors if tensor.dtype == torch.int32)[0]


@interpreted
@pytest.mark.parametrize("tolerance", [TOLERANCE, 2**-30])
@pytest.mark.parametrize("kind", ADVERSARIES)
def test_skipped_keys_have_less_weight_than_the_tolerance(kind: str, tolerance: float) -> None:
    length, slopes = 700, torch.tensor([0.5, 1 / 16, 0.0])
    query, key, value = adversarial(kind, 3, length, seed=0)
    starts = starts_of(query, key, value, slopes, tolerance).repeat_interleave(128, dim=1)[:, :length]
    distance = (torch.arange(length)[:, None] - torch.arange(length)).double()
    scores = query[0].detach().double() @ key[0].double().mT * SCALING - slopes[:, None, None] * distance
    weights = scores.masked_fill(distance < 0, -torch.inf).softmax(-1)
    left_out = (weights * (torch.arange(length) < starts[..., None])).sum(-1)
    assert left_out.max() <= tolerance
    assert (starts[2] == 0).all()  # without a bias, every key may matter
    if kind in ("normal", "shifted keys", "tiny"):
        assert starts[0, -1] >= 384  # the steepest head needs about a hundred keys


@interpreted
def test_nothing_is_skipped_without_a_tolerance() -> None:
    assert (starts_of(*adversarial("normal", 2, 700, seed=0), alibi_slopes(2), 0.0) == 0).all()


@interpreted
def test_documents_before_the_tile_are_not_read() -> None:
    tensors = draw(2, 300, 300, rows=1)
    first_keys = torch.where(torch.arange(300) < 256, 0, 256).int()[None]
    output = fused_attention(*tensors, alibi_slopes(2)[None], SCALING, 0.0, first_keys)
    starts = [tensor for tensor in output.grad_fn.saved_tensors if tensor.shape == (1, 2, 3)][0]
    assert starts.tolist() == [[[0, 0, 256]] * 2]


@interpreted
@pytest.mark.parametrize("back_end", ["sdpa", "alibi_banded"])
@pytest.mark.parametrize(
    ("case", "layout"), [("alibi", "whole"), ("alibi", "left"), ("alibi_trained_slopes", "packed")]
)
def test_models_in_float16(case: str, layout: str, back_end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both back ends take the kernels where they run, and are as near the reference as eager."""
    monkeypatch.setattr(attention_fused, "_runs_kernels", lambda device: True)
    monkeypatch.setattr(attention, "MIN_LONG_PAIRS", 1)
    monkeypatch.setattr(attention, "MIN_LONG_QUERIES", 1)
    calls = []
    monkeypatch.setattr(attention_fused, "fused_attention", lambda *args: calls.append(args) or fused_attention(*args))
    errors = {}
    with torch.no_grad():
        for name in ("eager", back_end):
            logits = FEEDS["at_once"](make_model(case, name, torch.float16), BATCHES[layout]).float()
            errors[name] = max_error(logits, expected_logits(case, layout), BATCHES[layout].visible)
    assert calls
    assert errors[back_end] <= 2.0 * errors["eager"]


@interpreted
def test_compiled_gradients() -> None:
    """Through the operators' shapes, strides and gradients, as compilers see them."""

    def attend(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
        return fused_attention(query.transpose(1, 2), key, value, slopes, SCALING, 2**-30).sin()

    query, key, value = draw(2, 70, 70)
    tensors = query.detach().transpose(1, 2).contiguous().requires_grad_(), key, value, alibi_slopes(2)[None]
    tensors[3].requires_grad_()
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    gradients = [torch.autograd.grad(run(*tensors).sum(), tensors) for run in (attend, compiled)]
    for eager, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, eager, atol=1e-5, rtol=1e-5)


@interpreted
@pytest.mark.parametrize("back_end", ["sdpa", "alibi_banded"])
def test_compiled_models(back_end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph, which calls the kernels as operators, with the loss and gradients of eager code."""
    monkeypatch.setattr(attention_fused, "_runs_kernels", lambda device: True)
    monkeypatch.setattr(attention, "MIN_LONG_PAIRS", 1)
    model = make_model("alibi", back_end, torch.float16).train()
    torch._dynamo.reset()
    num_kernels = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        nodes = [
            node for part in graph.modules() if isinstance(part, torch.fx.GraphModule) for node in part.graph.nodes
        ]
        num_kernels.append(sum("launch.forward" in str(node.target) for node in nodes))
        return graph.forward

    compiled_model = torch.compile(model, backend=count, fullgraph=True)
    for length in (70, 90, 110):
        tokens = torch.randint(0, 61, (2, length), generator=torch.Generator().manual_seed(0))
        losses, gradients = [], []
        for forward in (model, compiled_model):
            loss = forward(tokens, labels=tokens, use_cache=False).loss
            losses.append(loss.item())
            gradients.append(torch.autograd.grad(loss, list(model.parameters())))
        assert losses[0] == pytest.approx(losses[1], abs=1e-3)
        for eager, compiled in zip(*gradients, strict=True):
            torch.testing.assert_close(compiled, eager, atol=2e-3, rtol=0)
    # The second length compiles a graph for all lengths.
    assert len(num_kernels) == 2 and min(num_kernels) > 0


@interpreted
def test_overlapping_states() -> None:
    """Keys that share memory get gradients of their own, which torch adds up."""
    memory = torch.randn(1, 2, 100, HEAD_DIM, generator=torch.Generator().manual_seed(0)).requires_grad_()
    keys = memory.as_strided((1, 2, 65, HEAD_DIM), (0, 100 * HEAD_DIM, HEAD_DIM // 2, 1))
    query, _, value = draw(2, 65, 65, rows=1)
    found = fused_attention(query, keys, value, alibi_slopes(2)[None], SCALING, 0.0)
    expected = reference(query, keys, value, alibi_slopes(2))
    gradients = [torch.autograd.grad(result.square().sum(), memory)[0] for result in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 2, 9, HEAD_DIM), (1, 3, 8, HEAD_DIM)])
def test_shapes_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    query, (_, key, value) = torch.zeros(shape), draw(2, 8, 8, rows=1)
    with pytest.raises(ValueError, match="expected at least as many keys"):
        fused_attention(query, key, value, alibi_slopes(shape[1])[None], SCALING, 0.0)


def test_a_folder_with_any_name_loads(tmp_path: Path) -> None:
    """Its copy of the kernels registers operators, whose names are ASCII."""
    save = (
        "import sys; from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM as Model;"
        "AlibiGPTConfig.register_for_auto_class(); Model.register_for_auto_class('AutoModelForCausalLM');"
        "Model(AlibiGPTConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))"
        ".save_pretrained(sys.argv[1])"
    )
    load = "import sys, transformers as t; t.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)"
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    for code in (save, load):
        command = [sys.executable, "-c", code, str(tmp_path / "modèle 模型")]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert result.returncode == 0, result.stderr[-2000:]


def test_dropout_is_left_to_augmented_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(AugmentedAttention, "attend", lambda self, *args: calls.append(args) or args[0])
    context = AttentionContext.from_lengths(8, 8, torch.bfloat16)
    query, key, value = draw(2, 8, 8, torch.bfloat16)
    FusedAttention(context, alibi_slopes(2)[None, None], 0.0).attend(query, key[:, :1], value[:, :1], SCALING, 0.1)
    assert calls[0][1].shape == key.shape and calls[0][4] == 0.1


def test_what_the_kernels_support(monkeypatch: pytest.MonkeyPatch) -> None:
    slopes = alibi_slopes(2)[None, None]
    assert not can_fuse(AttentionContext.from_lengths(8, 8, torch.bfloat16), slopes)  # on a CPU
    monkeypatch.setattr(attention_fused, "_runs_kernels", lambda device: True)
    assert can_fuse(AttentionContext.from_lengths(8, 8, torch.bfloat16), slopes)
    assert not can_fuse(AttentionContext.from_lengths(8, 8, torch.float32), slopes)
    assert not can_fuse(AttentionContext.from_lengths(8, 8, torch.bfloat16), slopes.expand(1, 8, 2))


@pytest.mark.parametrize(
    ("fields", "expected"), [({}, True), ({"attention_dropout": 0.1}, False), ({"head_dim": 136}, False)]
)
def test_which_models_the_kernels_support(fields: dict, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_fused, "_runs_kernels", lambda device: True)
    config = AlibiGPTConfig(hidden_size=32, num_attention_heads=2, **{"attention_dropout": 0.0, **fields})
    inputs = ForwardInputs(config, torch.zeros(1, 8, 32, dtype=torch.bfloat16))
    assert can_fuse(attention_context(inputs, {}), alibi_slopes(2)[None, None]) == expected


@pytest.mark.parametrize("capability", [80, 89, 90])
def test_kernels_compile(capability: int) -> None:
    """For NVIDIA GPUs of three generations, without one, and within their shared memory."""
    command = [sys.executable, "-m", "tests.support.compile_kernels", str(capability)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("compiled") == 12
