"""FlashAttention 2's own kernels against the float64 loops: logits in bfloat16, held to what eager reaches there."""

import pytest
import torch
from transformers.utils import is_flash_attn_2_available

from tests.gpu.device import DEVICE
from tests.gpu.test_cuda_model import on_gpu
from tests.support.exact_cases import BATCHES, make_model
from tests.test_attention_flash import can_be_read
from tests.test_modeling_exact import FEEDS, INPUTS, expected_logits, max_error


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not is_flash_attn_2_available(), reason="flash-attn is not installed"),
]
# Both round their outputs to bfloat16, in another order.
ALLOWED_TIMES_EAGER = 2.0


@pytest.mark.parametrize(("layout", "feed"), [inputs for inputs in INPUTS if can_be_read(*inputs)])
@pytest.mark.parametrize("case", ["alibi", "alibi_custom", "alibi_inside", "rope", "none"])
@torch.no_grad()
def test_logits_are_as_near_the_reference_as_those_of_eager(case: str, layout: str, feed: str) -> None:
    errors = {}
    for back_end in ("eager", "flash_attention_2"):
        model = make_model(case, back_end, torch.bfloat16).to(DEVICE)
        logits = FEEDS[feed](model, on_gpu(BATCHES[layout])).float().cpu()
        errors[back_end] = max_error(logits, expected_logits(case, layout), BATCHES[layout].visible)
    assert errors["flash_attention_2"] <= ALLOWED_TIMES_EAGER * errors["eager"]


@pytest.mark.parametrize("layout", ["whole", "left", "packed"])
def test_gradients_are_as_near_those_of_float64_as_those_of_eager(layout: str) -> None:
    gradients, half = {}, torch.bfloat16
    for back_end, dtype in (
        ("eager", torch.float64),
        ("eager", half),
        ("flash_attention_2", half),
    ):
        model = make_model("alibi", back_end, dtype).to(DEVICE)
        batch = on_gpu(BATCHES[layout])
        logits = FEEDS["at_once"](model, batch)
        (logits if batch.visible is None else logits[batch.visible.bool()]).square().mean().backward()
        flat = torch.cat([parameter.grad.double().flatten() for parameter in model.parameters()])
        gradients[back_end, dtype] = flat
    exact = gradients["eager", torch.float64]
    error = {name: (grads - exact).norm() for (name, dtype), grads in gradients.items() if dtype == half}
    assert error["flash_attention_2"] <= ALLOWED_TIMES_EAGER * error["eager"]
