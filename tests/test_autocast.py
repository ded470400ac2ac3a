"""Models under autocast: attention sees one dtype, whatever norms and quantized layers return."""

import copy
import functools

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from modeling_alibi_gpt import AlibiGPTForCausalLM, AlibiWindowCache
from modeling_alibi_gpt.tensor_parallel import AlibiGPTHeadRMSNorm
from tests.support.exact_cases import BATCHES, Batch, make_model
from tests.test_modeling_exact import run_long_ways_on_short_texts


LONG_TOKENS = 600
# Back end, layout, and whether short texts go the ways of long ones.
WAYS = [
    ("sdpa", "whole", False),
    ("sdpa", "left", True),
    ("sdpa", "long_middle", False),  # augmented keys, whose digits are made for one dtype
    ("alibi_banded", "left", True),
    ("flex_attention", "left", False),
]


@pytest.fixture(autouse=True)
def norms_return_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under autocast on a GPU; on a CPU they return what they get."""
    normalize = AlibiGPTHeadRMSNorm.forward

    def in_float32(self: AlibiGPTHeadRMSNorm, states: Tensor) -> Tensor:
        return normalize(self, states).to(torch.promote_types(states.dtype, torch.float32))

    monkeypatch.setattr(AlibiGPTHeadRMSNorm, "forward", in_float32)


@functools.cache
def make_batch(layout: str) -> Batch:
    if layout != "long_middle":
        return BATCHES[layout]
    token_ids = torch.randint(61, (1, LONG_TOKENS), generator=torch.Generator().manual_seed(4))
    visible = torch.ones_like(token_ids)
    visible[:, 100:110] = 0
    return Batch(token_ids, visible=visible)


def visible_logits(model: AlibiGPTForCausalLM, layout: str, is_cast: bool) -> Tensor:
    batch = make_batch(layout)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_cast):
        logits = model(batch.token_ids, attention_mask=batch.visible, use_cache=False).logits.double()
    return logits if batch.visible is None else logits[batch.visible.bool()]


@pytest.mark.parametrize(("back_end", "layout", "is_long"), WAYS)
def test_rounding_is_that_of_eager(back_end: str, layout: str, is_long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_long:
        run_long_ways_on_short_texts(monkeypatch)
    eager = make_model("qk_norm", "eager")
    exact = visible_logits(copy.deepcopy(eager).double(), layout, is_cast=False)
    plain_error = (visible_logits(eager, layout, is_cast=True) - exact).abs().max()
    error = (visible_logits(make_model("qk_norm", back_end), layout, is_cast=True) - exact).abs().max()
    assert 0.0 < error <= 2 * plain_error


@torch.no_grad()
def test_caches_hold_the_dtype_of_autocast() -> None:
    model, input_ids = make_model("qk_norm", "alibi_banded"), BATCHES["whole"].token_ids
    caches = DynamicCache(config=model.config), AlibiWindowCache.from_qk_norm(model)
    with torch.autocast("cpu", torch.bfloat16):
        logits = [
            torch.cat([model(chunk, past_key_values=cache).logits for chunk in input_ids.split([12, 6, 1], dim=1)], 1)
            for cache in caches
        ]
    torch.testing.assert_close(*logits, rtol=0, atol=0.05)
    states = [caches[0].layers[0].keys, caches[0].layers[0].values, caches[1].layers[0].groups[0].storage]
    assert {tensor.dtype for tensor in states} == {torch.bfloat16}


@pytest.mark.parametrize("back_end", ["eager", "sdpa"])
def test_float64_is_left_alone(back_end: str) -> None:
    model = make_model("alibi", back_end, torch.float64)
    assert torch.equal(*(visible_logits(model, "left", is_cast) for is_cast in (False, True)))
