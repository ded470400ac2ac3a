"""torchao: int8 weights on the CPU, whose logits are those of the rounded weights and close to the plain ones."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, TorchAoConfig


pytest.importorskip("torchao")
from torchao.quantization import Int8WeightOnlyConfig, quantize_  # noqa: E402


pytestmark = pytest.mark.integrations
TOLERANCE = 1e-5  # promised for float32 logits of order one


def draw_tokens(model) -> Tensor:
    return torch.randint(1, model.config.vocab_size, (2, 60), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model) -> Tensor:
    return model(draw_tokens(model)).logits


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]


def rounding_steps(model: nn.Module) -> list[Tensor]:
    """One step a row: 256 of them span twice the largest magnitude of the row."""
    return [module.weight.detach().abs().amax(dim=1, keepdim=True) / 127.5 for module in linear_layers(model)]


def expected_error(model: nn.Module) -> float:
    """Root mean square of the change of a logit by rounding, to first order.

    Rounding moves a weight by a uniform error of at most half a step, of variance step^2 / 12, so a random combination
    of logits moves by a variance that is the sum over weights of gradient^2 * step^2 / 12.
    """
    weights = [module.weight for module in linear_layers(model)]
    probe = torch.randn(logits(model).shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((model(draw_tokens(model)).logits * probe).sum(), weights)
    variance = sum(
        (gradient * step).square().sum() / 12 for step, gradient in zip(rounding_steps(model), gradients, strict=True)
    )
    return (variance / probe.numel()).sqrt().item()


@pytest.mark.parametrize("fields", [{}, {"alibi_trainable": "slopes"}], ids=str)
def test_int8_weights_move_the_logits_by_their_rounding(make_model, fields: dict) -> None:
    model = make_model(**fields)
    quantized, rounded = copy.deepcopy(model), copy.deepcopy(model)
    quantize_(quantized.model.layers, Int8WeightOnlyConfig())
    layers = zip(linear_layers(model), linear_layers(quantized), linear_layers(rounded), strict=True)
    for step, (plain, int8, target) in zip(rounding_steps(model), layers, strict=True):
        target.weight.data = int8.weight.dequantize()
        # Half a step, and the float32 rounding of numbers of up to 128 steps.
        assert ((target.weight - plain.weight).abs() <= step * (0.5 + 256 * torch.finfo(torch.float32).eps)).all()
    torch.testing.assert_close(logits(quantized), logits(rounded), rtol=0.0, atol=TOLERANCE)

    error = (logits(quantized) - logits(model)).square().mean().sqrt().item()
    assert expected_error(model) / 2 < error < 2 * expected_error(model)
    slopes, before = (each.model.position_method.layer_slopes(1) for each in (quantized, model))
    assert torch.equal(slopes, before)


def test_a_checkpoint_loads_in_int8_and_generates(make_model, tmp_path) -> None:
    """``from_pretrained`` with a ``TorchAoConfig`` gives what ``quantize_`` gives, and generation reads its cache."""
    model = make_model()
    model.save_pretrained(tmp_path)
    settings = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["lm_head"])
    quantized = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings, device_map="cpu")
    expected = copy.deepcopy(model)
    quantize_(expected.model.layers, Int8WeightOnlyConfig())
    assert torch.equal(logits(quantized), logits(expected))
    prompt = draw_tokens(model)[:1, :5]
    tokens = quantized.generate(prompt, max_new_tokens=20, do_sample=False)
    without_cache = quantized.generate(prompt, max_new_tokens=20, do_sample=False, use_cache=False)
    assert tokens.tolist() == without_cache.tolist() and tokens.shape[1] > prompt.shape[1]
