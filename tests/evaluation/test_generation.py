"""Text from a checkpoint: what a model cannot do is said in words."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationMixin, GPT2Config, GPT2LMHeadModel

from modeling_alibi_gpt import AlibiGPTForCausalLM
from modeling_alibi_gpt.data.corpora import load_documents
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer
from modeling_alibi_gpt.evaluation.generation import GenerateConfig, generate_text


def test_beyond_a_table_of_positions_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one line of words after another\n" * 50, encoding="utf-8")
    folder = tmp_path / "gpt2"
    train_tokenizer(load_documents(f"text:{tmp_path}/text.txt", "all"), 300).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=48, n_layer=1, n_head=3, n_positions=16, eos_token_id=299)
    GPT2LMHeadModel(config).save_pretrained(folder)
    assert generate_text(GenerateConfig(model=str(folder), prompt="one", max_new_tokens=4))["text"].startswith("one")
    with pytest.raises(ValueError, match="position table of 16 tokens: lower max_new_tokens"):
        generate_text(GenerateConfig(model=str(folder), prompt="one", max_new_tokens=64, do_sample=False))


def test_beyond_the_length_of_another_family_is_an_error_in_words(make_folder: Callable[[str], str]) -> None:
    with pytest.raises(ValueError, match="exceeds the model's position table of 16 tokens: lower max_new_tokens"):
        generate_text(GenerateConfig(model=make_folder("mpt"), prompt="plan", max_new_tokens=64, do_sample=False))


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("max_new_tokens", [4, 64])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error_in_words(
    make_folder: Callable[[str], str], tmp_path: Path, do_sample: bool, max_new_tokens: int, number: float
) -> None:
    """As of a training that diverged. ALiBi has no position table that could be the reason."""
    folder = Path(shutil.copytree(make_folder("alibi"), tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].fill_(number)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = GenerateConfig(model=str(folder), prompt="plan", max_new_tokens=max_new_tokens, do_sample=do_sample)
    with pytest.raises(ValueError, match="model: the model's logits are not finite numbers, so there is no text$"):
        generate_text(settings)


def test_tokens_may_have_no_probability(make_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    forward = AlibiGPTForCausalLM.forward

    def without_token_5(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits[..., 5] = -math.inf
        return output

    monkeypatch.setattr(AlibiGPTForCausalLM, "forward", without_token_5)
    assert generate_text(GenerateConfig(model=make_folder("alibi"), prompt="plan"))["text"].startswith("plan")


def test_other_failures_are_not_blamed_on_a_table(
    make_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("of another reason")

    monkeypatch.setattr(AlibiGPTForCausalLM, "forward", fail)
    with pytest.raises(RuntimeError, match="of another reason"):
        generate_text(GenerateConfig(model=make_folder("alibi"), prompt="plan"))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, ["TemperatureLogitsWarper", "TopPLogitsWarper"]),
        ({"temperature": 1.0, "top_p": 1.0}, []),
        ({"do_sample": False}, []),
    ],
)
def test_tokens_are_drawn_by_the_settings_alone(
    make_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, sampling: dict[str, Any], expected: list[str]
) -> None:
    used, make_processors = [], GenerationMixin._get_logits_processor

    def spy(*args: Any, **kwargs: Any) -> Any:
        used.append(make_processors(*args, **kwargs))
        return used[-1]

    monkeypatch.setattr(GenerationMixin, "_get_logits_processor", spy)
    generate_text(GenerateConfig(model=make_folder("alibi"), prompt="plan", max_new_tokens=2, **sampling))
    (processors,) = used
    assert [type(processor).__name__ for processor in processors] == expected


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize(
    "of_checkpoint",
    [
        {"num_beams": 0},
        {"num_beams": 3},
        {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "min_p": 0.5, "top_k": 1},
        {"suppress_tokens": list(range(200)), "min_new_tokens": 30},
    ],
)
def test_generation_settings_of_the_checkpoint_have_no_effect(
    make_folder: Callable[[str], str], tmp_path: Path, of_checkpoint: dict[str, Any], do_sample: bool
) -> None:
    settings = {"prompt": "plan window", "max_new_tokens": 30, "do_sample": do_sample}
    plain = generate_text(GenerateConfig(model=make_folder("alibi"), **settings))
    folder = Path(shutil.copytree(make_folder("alibi"), tmp_path / "model"))
    (folder / "generation_config.json").write_text(json.dumps(of_checkpoint), encoding="utf-8")
    assert generate_text(GenerateConfig(model=str(folder), **settings)) == plain


def test_float16_is_not_offered() -> None:
    with pytest.raises(ValueError, match="'dtype' must be 'float32' or 'bfloat16', got 'float16'"):
        GenerateConfig(model="anywhere", prompt="plan", dtype="float16")


def test_no_temperature_makes_infinite_logits(make_folder: Callable[[str], str]) -> None:
    coldest = GenerateConfig(model=make_folder("alibi"), prompt="plan", max_new_tokens=4, temperature=1e-6)
    greedy = GenerateConfig(model=coldest.model, prompt="plan", max_new_tokens=4, do_sample=False)
    assert generate_text(coldest) == generate_text(greedy)
    with pytest.raises(ValueError, match="'temperature' must be at least .*, got 1e-40"):
        GenerateConfig(model=coldest.model, prompt="plan", temperature=1e-40)
