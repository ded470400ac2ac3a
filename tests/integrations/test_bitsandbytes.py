"""bitsandbytes on the CPU: nf4 and int8 weights are within their rounding, and so are the logits that they give."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.integrations
# Its nf4 kernel for processors with AVX-512 BF16 takes layers of a multiple of 32 outputs.
WIDTHS = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 4}
SETTINGS = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}
BLOCK_SIZE = 64  # values that share a scale in nf4
WIDEST_GAP = 0.304  # between neighboring values of nf4, -1 and -0.696
HALF_STEP = 0.5 / 127 + 2**-11  # of int8 that was float16 before, relative to the largest of the row


def weight_of(layer: nn.Linear) -> Tensor:
    """The numbers that a quantized weight stands for."""
    weight = layer.weight
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight.data * weight.SCB[:, None] / 127


def rounding_bound(name: str, weight: Tensor) -> Tensor:
    if name == "int8":
        return HALF_STEP * weight.abs().amax(dim=1, keepdim=True).expand_as(weight)
    scales = weight.abs().reshape(-1, BLOCK_SIZE).amax(dim=1, keepdim=True)
    return (WIDEST_GAP / 2 * scales).expand(-1, BLOCK_SIZE).reshape(weight.shape)


def rounded_input(name: str) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
    """What the kernels make of the input of a layer: bfloat16 beside nf4, int8 a token beside int8."""

    def call(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        [states] = inputs
        if name == "nf4":
            return states.bfloat16().float()
        steps = states.abs().amax(dim=-1, keepdim=True) / 127
        return (states / steps).round() * steps

    return call


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    tokens = torch.randint(1, model.config.vocab_size, (2, 60), generator=torch.Generator().manual_seed(0))
    return model(tokens).logits


def root_mean_square(difference: Tensor) -> float:
    return difference.square().mean().sqrt().item()


@pytest.mark.parametrize("fields", [{}, {"alibi_trainable": "slopes"}], ids=str)
@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_checkpoint_loads_quantized_and_is_within_its_rounding(
    make_model, tmp_path, name: str, fields: dict
) -> None:
    model = make_model(**WIDTHS, **fields)
    model.save_pretrained(tmp_path)
    quantized = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=SETTINGS[name], device_map="cpu"
    ).eval()
    exact = copy.deepcopy(model)
    for path, layer in quantized.model.layers.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        assert type(layer) is not nn.Linear, path
        target = exact.model.layers.get_submodule(path).weight
        difference = (weight_of(layer) - target).abs()
        assert difference.any() and (difference <= rounding_bound(name, target)).all()
        target.data = weight_of(layer)
    rounded = copy.deepcopy(exact)
    for layer in rounded.model.layers.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(rounded_input(name))
            layer.weight.data = layer.weight.bfloat16().float() if name == "nf4" else layer.weight

    expected = logits(exact)
    error, rounding = (root_mean_square(logits(each) - expected) for each in (quantized, rounded))
    assert error < 2 * rounding < root_mean_square(expected) / 2
    slopes, before = (each.model.position_method.layer_slopes(1) for each in (quantized, model))
    assert torch.equal(slopes, before)


@pytest.mark.parametrize("name", list(SETTINGS))
def test_generation_of_a_quantized_model_reads_its_cache(make_model, tmp_path, name: str) -> None:
    make_model(**WIDTHS).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=SETTINGS[name], device_map="cpu")
    prompt = torch.tensor([[5, 9, 30, 7, 11]])
    tokens, without_cache = (
        model.generate(prompt, max_new_tokens=20, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    )
    assert tokens.tolist() == without_cache.tolist() and tokens.shape[1] > prompt.shape[1]
