"""Augmented keys with steep slopes and with head sizes whose root is no power of two, forward and gradient."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTModel
from modeling_alibi_gpt.alibi import alibi_slopes
from modeling_alibi_gpt.attention_augmented import AugmentedAttention, augmented_attention
from tests.test_modeling_exact import run_long_ways_on_short_texts


TOKENS = torch.randint(50, (1, 40), generator=torch.Generator().manual_seed(0))
PADDED_BETWEEN = torch.ones_like(TOKENS).index_fill(1, torch.tensor([10, 11, 12]), 0)


def make_model(dtype: torch.dtype, back_end: str, **fields: object) -> AlibiGPTModel:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 8, "head_dim": 64}
    config = AlibiGPTConfig(**shape, initializer_range=0.2, attn_implementation=back_end, **fields)
    return AlibiGPTModel(config).eval().to(dtype)


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtype of every call of augmented attention from here on."""
    calls, attend = [], AugmentedAttention.attend

    def observe(self: AugmentedAttention, query: Tensor, *args: object) -> Tensor:
        calls.append(query.dtype)
        return attend(self, query, *args)

    monkeypatch.setattr(AugmentedAttention, "attend", observe)
    return calls


def record_dtypes(
    dtypes: list[torch.dtype], graph: torch.fx.GraphModule, inputs: list[Tensor]
) -> torch.fx.GraphModule:
    """A back end of torch.compile that notes the dtype of every attention whose heads are wider than 64."""
    calls = [node for node in graph.graph.nodes if node.target is F.scaled_dot_product_attention]
    queries = [call.args[0].meta["example_value"] for call in calls]
    dtypes += [query.dtype for query in queries if query.shape[-1] > 64]
    return graph


@pytest.mark.parametrize("is_compiled", [False, True], ids=["uncompiled", "compiled"])
@pytest.mark.parametrize("kind", ["geometric", "uniform"])
@pytest.mark.parametrize("beta", [8.0, 64.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_steep_slopes_in_half_precision(
    dtype: torch.dtype, beta: float, kind: str, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most twice the error of `eager` in that dtype, both against float64. float16 ends at 65,504."""
    torch._dynamo.reset()
    calls, fields = count_calls(monkeypatch), {"alibi_beta": beta, "alibi_slope_kind": kind}
    run_long_ways_on_short_texts(monkeypatch)
    mask = None if is_compiled else PADDED_BETWEEN
    eager, half = (make_model(dtype, back_end, **fields) for back_end in ("eager", "sdpa"))
    compiled_calls: list[torch.dtype] = []
    if is_compiled:
        half = torch.compile(
            half, backend=functools.partial(record_dtypes, compiled_calls), fullgraph=True, dynamic=True
        )
    outputs = [model(TOKENS, attention_mask=mask).last_hidden_state.double() for model in (eager, half)]
    if is_compiled:
        assert compiled_calls == [torch.float32 if dtype == torch.float16 else dtype]
    else:
        assert calls == [dtype]
    # The exact numbers of the rounded weights.
    exact = make_model(dtype, "eager", **fields).double()(TOKENS, attention_mask=mask).last_hidden_state
    is_visible = slice(None) if mask is None else mask.bool()
    plain_error, error = ((output - exact)[is_visible].abs().max() for output in outputs)
    assert outputs[1][is_visible].isfinite().all()
    assert error <= 2 * plain_error


@torch.no_grad()
def test_steep_slopes_under_autocast_to_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would cast the queries and keys back."""
    calls = count_calls(monkeypatch)
    run_long_ways_on_short_texts(monkeypatch)
    outputs = []
    for back_end in ("eager", "sdpa"):
        model = make_model(torch.float32, back_end, alibi_beta=1e6, alibi_slope_kind="uniform")
        with torch.autocast("cpu", torch.float16):
            outputs.append(model(TOKENS, attention_mask=PADDED_BETWEEN).last_hidden_state[PADDED_BETWEEN.bool()])
    assert calls == [torch.float16]
    # Values of order one go through four roundings, those of attention, its projection and both sums.
    torch.testing.assert_close(outputs[1], outputs[0], atol=8 * torch.finfo(torch.float16).eps, rtol=0)


@pytest.mark.parametrize("beta", [1.0, 64.0, 1000.0])
@pytest.mark.parametrize("head_dim", [8, 24, 32, 128])
def test_gradients_are_as_exact_as_with_a_mask(head_dim: int, beta: float) -> None:
    """At most four times the error of attention with the same bias in a mask, both against float64."""
    length, num_heads, scaling = 300, 4, head_dim**-0.5
    generator = torch.Generator().manual_seed(0)
    *tensors, direction = torch.randn(4, 1, num_heads, length, head_dim, generator=generator)
    slopes, positions = alibi_slopes(num_heads, beta=beta), torch.arange(length)[None]
    distance = positions.mT - positions
    bias = (-slopes.double()[:, None, None] * distance).masked_fill(distance < 0, -torch.inf)[None]
    masked = functools.partial(F.scaled_dot_product_attention, scale=scaling)

    def augmented(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return augmented_attention(query, key, value, slopes[None, None], positions, positions, None, scaling)

    found = []
    for attend, dtype in (
        (functools.partial(masked, attn_mask=bias), torch.float64),
        (functools.partial(masked, attn_mask=bias.float()), torch.float32),
        (augmented, torch.float32),
    ):
        states = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        output = attend(*states)
        found.append(torch.autograd.grad(output, states, direction.to(dtype)))
    for exact, plain, own in zip(*found, strict=True):
        assert (own - exact).abs().max() <= 4 * (plain - exact).abs().max()


def test_slopes_that_learn_in_half_precision_have_the_gradient_of_a_mask() -> None:
    """At most four times the error of `eager`, both against float64; augmented keys would have 60 times that error."""
    tokens = torch.randint(50, (2, 800), generator=torch.Generator().manual_seed(0))
    direction = torch.randn(2, 800, 64, generator=torch.Generator().manual_seed(7))
    found = []
    for dtype, back_end in ((torch.float64, "eager"), (torch.bfloat16, "eager"), (torch.bfloat16, "sdpa")):
        model = make_model(dtype, back_end, alibi_trainable="slopes")
        (model(tokens).last_hidden_state * direction.to(dtype)).sum().backward()
        (slopes,) = (weight for name, weight in model.named_parameters() if name.endswith("log_slopes"))
        found.append(slopes.grad.double())
    exact, plain, own = found
    assert (own - exact).norm() <= 4 * (plain - exact).norm()
