"""The model card of every folder that is written: license kept, origin named, and loading code that runs."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM, AlibiGPTForSequenceClassification
from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert
from modeling_alibi_gpt.checkpoints.hub import ExportConfig, export_to_hub
from modeling_alibi_gpt.checkpoints.model_card import GGUF_USAGE
from tests.support.conversion_cases import bloom, converted, gpt2


Save = Callable[..., Path]
SOURCE_CARD = """---
license: other
license_name: bigscience-bloom-rail-1.0
license_link: https://huggingface.co/spaces/bigscience/license
language: [en, fr]
tags: [bloom]
base_model: bigscience/bloom
model-index:
- name: small
  results:
  - task: {type: text-generation}
    dataset: {type: wikitext, name: wikitext}
    metrics: [{type: perplexity, value: 12.5}]
---

# Small BLOOM

What it is for.
"""


@pytest.fixture
def save(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Save:
    """A small AlibiGPT with its tokenizer, saved to a folder."""

    def make(**fields: object) -> Path:
        sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        AlibiGPTForCausalLM(AlibiGPTConfig(**sizes, **fields)).save_pretrained(tmp_path / "mine")
        tokenizer.save_pretrained(tmp_path / "mine")
        return tmp_path / "mine"

    return make


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A BLOOM with a card, as AlibiGPT, back, and exported."""
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "README.md").write_text(SOURCE_CARD, encoding="utf-8")
    converted(bloom(), tmp_path)
    model = str(tmp_path / "converted")
    convert(ConvertConfig(model=model, output_dir=str(tmp_path / "back"), to="bloom"))
    export_to_hub(ExportConfig(model=model, output_dir=str(tmp_path / "exported")))
    return tmp_path


@pytest.mark.parametrize("name", ["converted", "back", "exported"])
def test_the_sources_card_is_kept_and_completed(name: str, folders: Path) -> None:
    card = ModelCard.load(folders / name / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "bigscience-bloom-rail-1.0")
    assert card.data.license_link == "https://huggingface.co/spaces/bigscience/license"
    assert (card.data.language, card.data.base_model) == (["en", "fr"], "bigscience/bloom")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert card.data.tags == ["bloom", "alibi"]
    assert card.data.eval_results[0].metric_value == 12.5
    assert card.text.endswith("# Small BLOOM\n\nWhat it is for.\n")
    assert card.text.count("alibi-gpt: this folder") == card.text.count("```python") == 1, "of this folder alone"


def test_a_card_says_what_the_folder_is(folders: Path) -> None:
    text = {
        name: (folders / name / "README.md").read_text(encoding="utf-8") for name in ("converted", "back", "exported")
    }
    assert "original (`bloom`), converted to `alibi_gpt` by alibi-gpt" in text["converted"]
    assert "converted (`alibi_gpt`), converted to `bloom` by alibi-gpt" in text["back"]
    assert "import modeling_alibi_gpt" in text["converted"]
    assert "modeling_alibi_gpt" not in text["back"] and text["exported"].count("trust_remote_code=True") == 2
    assert str(folders) not in "".join(text.values())


@pytest.mark.parametrize("to", ["alibi_gpt", "mpt"])
def test_the_loading_code_runs(to: str, save: Save, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = save(use_bias=False)
    folder = tmp_path / "out"
    if to == "alibi_gpt":
        convert(ConvertConfig(model=str(source), output_dir=str(tmp_path / "mpt"), to="mpt"))
        source = tmp_path / "mpt"
    convert(ConvertConfig(model=str(source), output_dir=str(folder), to=to))
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["model"], PreTrainedModel) and names["model"].config.model_type == to
    assert names["tokenizer"]("a").input_ids


def test_a_folder_without_a_card_gets_one(tmp_path: Path) -> None:
    converted(gpt2(), tmp_path, overrides={"position_method": "alibi"})
    card = ModelCard.load(tmp_path / "converted" / "README.md")
    assert card.data.license is None and card.data.tags == ["alibi"]
    assert "Left out: wpe.weight. Fine-tune it before use." in card.text


def test_a_model_with_other_positions_is_not_tagged_alibi(tmp_path: Path) -> None:
    converted(gpt2(), tmp_path)
    assert ModelCard.load(tmp_path / "converted" / "README.md").data.tags == ["learned"]


def test_a_gguf_has_a_card(save: Save, tmp_path: Path) -> None:
    source = save()
    (source / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n", encoding="utf-8")
    convert(ConvertConfig(model=str(source), output_dir=str(tmp_path / "out"), to="gguf", dtype="float16"))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "gguf")
    assert card.data.tags == ["alibi", "gguf", "llama.cpp"]
    assert GGUF_USAGE in card.text and "a GGUF file in float16" in card.text


def test_engines_that_differ_are_in_the_card(save: Save, tmp_path: Path) -> None:
    options = {"model": str(save()), "output_dir": str(tmp_path / "out"), "to": "mpt", "flavour": "llm-foundry"}
    convert(ConvertConfig(**options))
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "from_pretrained" not in text and "library_name: llm-foundry" in text
    assert "Not for transformers, which ignores use_bias. Not for CTranslate2, which ignores use_bias." in text


def test_a_card_that_cannot_be_read_leaves_nothing(save: Save, tmp_path: Path) -> None:
    source = save(use_bias=False)
    (source / "README.md").write_text("---\nlicense: [\n---\n", encoding="utf-8")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match="README.md: the front matter between --- is not a YAML mapping"):
        convert(ConvertConfig(model=str(source), output_dir=str(tmp_path / "out"), to="mpt"))
    with pytest.raises(ValueError, match="README.md: the front matter between --- is not a YAML mapping"):
        export_to_hub(ExportConfig(model=str(source), output_dir=str(tmp_path / "out")))
    assert sorted(os.listdir(tmp_path)) == before


def test_the_card_of_a_classifier_loads_all_of_it(save: Save, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = save()
    model = AlibiGPTForSequenceClassification(AlibiGPTConfig.from_pretrained(source, num_labels=3))
    model.save_pretrained(source)
    export_to_hub(ExportConfig(model=str(source), output_dir=str(tmp_path / "out")))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    [code] = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    monkeypatch.chdir(tmp_path / "out")
    names: dict[str, Any] = {}
    exec(code, names)
    assert torch.equal(names["model"].score.weight, model.score.weight)
