"""A checkpoint that is not whole, or whose parts do not fit, is refused in a sentence."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.checkpoints.load import load_causal_lm, load_model_config
from modeling_alibi_gpt.data.tokenizer_files import load_tokenizer
from modeling_alibi_gpt.evaluation.perplexity import PerplexityConfig, evaluate_perplexity


def edit_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def rewrite_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(folder: Path, num_bytes: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:num_bytes])


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def add_tokens(folder: Path, num_tokens: int) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([f"<{number}>" for number in range(num_tokens)])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    "damage, message",
    [
        (shutil.rmtree, "no model here"),
        (lambda folder: truncate(folder, 0), "truncated or damaged"),
        (lambda folder: truncate(folder, -1), "truncated or damaged"),
        (
            pickle_weights,
            "no file named model.safetensors.*: save them as safetensors",
        ),
        (lambda folder: rewrite_weights(folder, lambda weights: weights.popitem()), r"weights .* are missing \(1\)"),
        (lambda folder: edit_config(folder, num_hidden_layers=1), "weights do not belong to the model"),
        (lambda folder: edit_config(folder, hidden_size=32), "requires .*, but the weights have"),
        (lambda folder: edit_config(folder, alibi_beta=-1), "beta must be a finite number above 0"),
        (lambda folder: edit_config(folder, vocab_size=100), "requires .*embed_tokens.*, but the weights have"),
        (
            lambda folder: add_tokens(folder, 9),
            r"the tokenizer has ids up to \d+, but the model has \d+ embeddings",
        ),
        (lambda folder: (folder / "config.json").write_text("{", encoding="utf-8"), "config.json cannot be used"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: rewrite_weights(folder, lambda w: w["model.norm.weight"].fill_(math.nan)), "nan nats"),
    ],
)
def test_damaged_checkpoints_are_refused(make_folder, source: str, tmp_path, damage: Callable, message: str):
    folder = tmp_path / "checkpoint"
    shutil.copytree(make_folder("alibi"), folder)
    damage(folder)
    output = tmp_path / "perplexity.jsonl"
    with pytest.raises(ValueError, match=message):
        evaluate_perplexity(PerplexityConfig(model=str(folder), source=source, output=str(output)))
    assert not output.exists()


@pytest.mark.parametrize(
    ("kind", "overrides", "is_refused"),
    [
        ("beta", {"alibi_beta": 2.0}, True),
        ("slopes", {"alibi_beta": 2.0}, True),
        ("slopes", {"alibi_slope_kind": "uniform"}, True),
        ("beta", {"alibi_slope_kind": "uniform"}, False),
        ("none", {"alibi_beta": 2.0}, False),
    ],
)
def test_an_override_that_trained_weights_would_ignore_is_refused(
    tmp_path: Path, kind: str, overrides: dict[str, float], is_refused: bool
) -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    AlibiGPTForCausalLM(AlibiGPTConfig(alibi_trainable=kind, **shape)).save_pretrained(tmp_path)
    if is_refused:
        with pytest.raises(ValueError, match=f"overrides.{min(overrides)} has no effect: .*alibi_trainable {kind}"):
            load_model_config(tmp_path, overrides)
    else:
        config = load_model_config(tmp_path, overrides)
        slopes = [
            load_causal_lm(tmp_path, model_config).model.position_method.layer_slopes(0)
            for model_config in (None, config)
        ]
        assert not torch.equal(*slopes)


def test_parameters_of_a_position_method_may_start_anew_only_where_that_is_asked_for(make_folder) -> None:
    folder = make_folder("alibi")
    config = load_model_config(folder, {"position_method": "learned"})
    with pytest.raises(ValueError, match=r"weights .* are missing \(1\), e.g. model.position_method"):
        load_causal_lm(folder, config)
    assert load_causal_lm(folder, config, allow_new_positions=True).config.position_method == "learned"


@pytest.mark.parametrize("folder", ["org/name", "missing"])
def test_a_name_on_the_hub_is_no_folder(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ValueError, match="no model here, expected a folder"):
        load_model_config(tmp_path / folder)
