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
        (pickle_weights, "no file named model.safetensors"),
        (lambda folder: rewrite_weights(folder, lambda weights: weights.popitem()), "1 weights .* are missing"),
        (lambda folder: edit_config(folder, num_hidden_layers=1), "weights are not of the model"),
        (lambda folder: edit_config(folder, hidden_size=32), "asks for .*, the weights hold"),
        (lambda folder: edit_config(folder, alibi_beta=-1), "beta must be a finite number above 0"),
        (lambda folder: edit_config(folder, vocab_size=100), "asks for .*embed_tokens.*, the weights hold"),
        (
            lambda folder: add_tokens(folder, 9),
            r"the tokenizer gives ids up to \d+, but the model has embeddings for \d+",
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
