"""ONNX: graphs of ``transformers.exporters``, run in onnxruntime at lengths that were never traced."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.cache_argument import CACHE_NAME


pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
from transformers.exporters import OnnxConfig, OnnxExporter  # noqa: E402


pytestmark = pytest.mark.integrations
# Logits are of order one; onnxruntime orders float32 sums in its own way.
TOLERANCE = 1e-4
TRACED_SHAPE = (2, 17)
OTHER_SHAPES = ((2, 5), (3, 90), (2, 300))
MODELS = {
    "alibi": {},
    "trained_slopes": {"alibi_trainable": "slopes"},
    "dynamic_scaling": {"alibi_scaling": {"type": "dynamic_linear"}, "train_context_length": 16},
}


def make_model(**fields) -> AlibiGPTForCausalLM:
    torch.manual_seed(0)
    config = AlibiGPTConfig(
        vocab_size=61,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        initializer_range=0.2,
        **fields,
    )
    return AlibiGPTForCausalLM(config).eval()


def draw_batch(batch_size: int, length: int, num_padding: int = 0) -> dict[str, Tensor]:
    """Random tokens; the first row begins with padding."""
    tokens = torch.randint(0, 61, (batch_size, length), generator=torch.Generator().manual_seed(length))
    visible = torch.ones_like(tokens)
    visible[0, :num_padding] = 0
    return {"input_ids": tokens, "attention_mask": visible}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_at_lengths_that_were_not_traced(name: str) -> None:
    model = make_model(use_cache=False, **MODELS[name])
    exported = OnnxExporter().export(model, draw_batch(*TRACED_SHAPE, num_padding=4), OnnxConfig(dynamic=True))
    for shape in OTHER_SHAPES:
        for num_padding in (0, 3):
            batch = draw_batch(*shape, num_padding)
            difference = (exported(**batch).logits - model(**batch).logits)[:, num_padding:]
            assert difference.abs().max() <= TOLERANCE


@torch.no_grad()
def test_decoding_with_a_cache_gives_the_tokens_of_generate() -> None:
    model, num_new_tokens = make_model(), 12
    exported = OnnxExporter().export_for_generation(model, draw_batch(*TRACED_SHAPE), OnnxConfig(dynamic=True))
    for batch_size, length in OTHER_SHAPES:
        tokens = draw_batch(batch_size, length)["input_ids"]
        expected = model.generate(tokens, max_new_tokens=num_new_tokens, do_sample=False)
        assert len(expected[:, length:].unique()) > 1

        positions = torch.arange(length).expand(batch_size, -1)
        cache = DynamicCache(config=model.config)
        inputs = {"input_ids": tokens, "position_ids": positions, CACHE_NAME: cache}
        outputs = exported.runners["prefill"](**inputs)
        for position in range(length, length + num_new_tokens):
            new = outputs.logits[:, -1:].argmax(-1)
            tokens = torch.cat((tokens, new), dim=1)
            positions = torch.full_like(new, position)
            inputs = {"input_ids": new, "position_ids": positions, CACHE_NAME: outputs[CACHE_NAME]}
            outputs = exported.runners["decode"](**inputs)
        assert tokens.tolist() == expected.tolist()
        in_full = model(tokens).logits[:, -1]
        assert (outputs.logits[:, -1] - in_full).abs().max() <= TOLERANCE
