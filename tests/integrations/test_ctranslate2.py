"""CTranslate2 runs exported models: logits as exact as PyTorch's, the same greedy tokens, text beyond the training."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert
from modeling_alibi_gpt.checkpoints.convert.mpt import engines_that_differ
from tests.support.conversion_cases import random_weights


ctranslate2 = pytest.importorskip("ctranslate2")
converters = pytest.importorskip("ctranslate2.converters.transformers")
pytestmark = pytest.mark.integrations

MODELS = Path(__file__).parents[2] / "configs" / "model"
LENGTHS = (1, 60, 300)  # the training length is 32
NUM_NEW_TOKENS = 30
SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "train_context_length": 32}


class Exported:
    """An AlibiGPT with one of the architectures of configs/model, and what CTranslate2 makes of its export."""

    def __init__(
        self, family: str, make_model: Callable, tokenizer: PreTrainedTokenizerFast, folder: Path, **fields: Any
    ):
        written = json.loads((MODELS / f"servable_{family}.json").read_text(encoding="utf-8"))
        kept = {name: value for name, value in written.items() if name not in ("model_type", "vocab_size")}
        heads = {"num_attention_heads": 6, "num_key_value_heads": 6}
        self.model: PreTrainedModel = random_weights(make_model(**{**kept, **SIZES, **heads, **fields}))
        self.tokenizer = tokenizer
        self.model.save_pretrained(folder / "ours")
        tokenizer.save_pretrained(folder / "ours")
        options = {"model": str(folder / "ours"), "output_dir": str(folder / "exported"), "to": family}
        convert(ConvertConfig(**options, flavour="llm-foundry" if family == "mpt" else "transformers"))
        self.exported = AutoModelForCausalLM.from_pretrained(folder / "exported").eval()
        self.exported.config.max_seq_len = max(LENGTHS)  # of MPT, beyond which transformers reads no text
        converters.TransformersConverter(str(folder / "exported")).convert(str(folder / "ct2"))
        self.generator = ctranslate2.Generator(str(folder / "ct2"), device="cpu", intra_threads=1)

    def errors(self, input_ids: list[int]) -> tuple[float, float]:
        """Largest errors of logits against float64: of CTranslate2, and of the export in transformers, in float32.

        Exports have absolute biases in both, slope times position, which cost float32 digits that AlibiGPT keeps.
        """
        with torch.no_grad():
            in_transformers = self.exported(torch.tensor([input_ids])).logits[0]
        yardstick = (in_transformers - self._exact(input_ids)).abs().max().item()
        return self.error_of_ctranslate2(input_ids), yardstick

    def error_of_ctranslate2(self, input_ids: list[int]) -> float:
        found = np.array(self.generator.forward_batch([self._tokens(input_ids)]))[0]
        return (torch.from_numpy(found) - self._exact(input_ids)).abs().max().item()

    @torch.no_grad()
    def _exact(self, input_ids: list[int]) -> torch.Tensor:
        return copy.deepcopy(self.model).double()(torch.tensor([input_ids])).logits[0]

    def greedy_tokens(self, input_ids: list[int]) -> tuple[list[int], list[int]]:
        """New tokens of CTranslate2 and of PyTorch."""
        settings = {"max_length": NUM_NEW_TOKENS, "min_length": NUM_NEW_TOKENS, "include_prompt_in_result": False}
        [result] = self.generator.generate_batch([self._tokens(input_ids)], **settings)
        settings = {"max_new_tokens": NUM_NEW_TOKENS, "min_new_tokens": NUM_NEW_TOKENS, "do_sample": False}
        ours = self.model.generate(torch.tensor([input_ids]), **settings)[0, len(input_ids) :]
        return result.sequences_ids[0], ours.tolist()

    def _tokens(self, input_ids: list[int]) -> list[str]:
        return self.tokenizer.convert_ids_to_tokens(input_ids)


@pytest.fixture
def export(make_model: Callable, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Exported]:
    return lambda family, **fields: Exported(family, make_model, tokenizer, tmp_path, **fields)


def know_mpt(monkeypatch: pytest.MonkeyPatch) -> None:
    """CTranslate2 knows the config of llm-foundry's code, ``MPTConfig``; that of transformers is ``MptConfig``."""
    monkeypatch.setitem(converters._MODEL_LOADERS, "MptConfig", converters._MODEL_LOADERS["MPTConfig"])


def draw_tokens(model: PreTrainedModel, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(1, model.config.vocab_size, (length,), generator=generator).tolist()


@pytest.mark.parametrize("heads", [6, 8])
@pytest.mark.parametrize("family", ["bloom", "mpt"])
def test_ctranslate2_computes_the_same(
    family: str, heads: int, export: Callable[..., Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    know_mpt(monkeypatch)
    exported = export(family, num_attention_heads=heads, num_key_value_heads=heads)
    prompts = [draw_tokens(exported.model, length) for length in LENGTHS]
    errors = [exported.errors(prompt) for prompt in prompts]
    yardstick = max(of_transformers for _, of_transformers in errors)
    assert max(found for found, _ in errors) <= 2 * yardstick
    for prompt in prompts:
        found, expected = exported.greedy_tokens(prompt)
        assert len(found) == NUM_NEW_TOKENS and found == expected

    # The comparison can tell: slopes one percent steeper stand out.
    exported.model.model.position_method.slopes *= 1.01
    assert exported.error_of_ctranslate2(prompts[-1]) > 100 * yardstick


def test_an_mpt_is_known_by_the_name_of_llm_foundrys_config_only(export: Callable[..., Exported]) -> None:
    with pytest.raises(ValueError, match="No conversion is registered for the model configuration MptConfig"):
        export("mpt")


@pytest.mark.parametrize(
    ("field", "value"),
    [("use_bias", True), ("alibi_bias_max", 16.0), ("tie_word_embeddings", False), ("clip_qkv", 0.5)],
)
def test_what_it_leaves_out_of_an_mpt_is_known(
    field: str, value: object, export: Callable[..., Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    know_mpt(monkeypatch)
    exported = export("mpt", **{field: value})
    assert field in engines_that_differ(exported.model.config)["CTranslate2"]
    assert exported.error_of_ctranslate2(draw_tokens(exported.model, 60)) > 0.01
