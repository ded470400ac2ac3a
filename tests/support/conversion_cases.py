"""Tiny random models of every convertible family, and the difference between the logits of two models."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
)

from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert


VOCAB_SIZE = 64
NUM_HEADS = (8, 12, 6, 16)  # powers of two and others, with slopes that are powers of two (8, 6) and others
WIDTH = 96
TOKENS = 48
# Logits are of order 1, so this is about 100 float32 rounding errors.
TOLERANCE = 1e-5


def random_weights(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """The model in evaluation mode, with weights large enough that attention, biases and norms all matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + (parameter.ndim == 1))
    return model.eval()


def bloom(num_heads: int = 8, **fields: Any) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": WIDTH, "n_layer": 2, "n_head": num_heads}
    return random_weights(BloomForCausalLM(BloomConfig(**{**sizes, **fields})))


def mpt(num_heads: int = 8, *, attn_config: dict[str, Any] | None = None, **fields: Any) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB_SIZE, "d_model": WIDTH, "n_layers": 2, "n_heads": num_heads}
    return random_weights(MptForCausalLM(MptConfig(**{**sizes, "max_seq_len": 64, **fields}, attn_config=attn_config)))


def falcon(num_heads: int = 8, **fields: Any) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": num_heads}
    kind = {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True}
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    return random_weights(FalconForCausalLM(FalconConfig(**{**sizes, **kind, **tokens, **fields})))


def gpt2(num_heads: int = 8, **fields: Any) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB_SIZE, "n_embd": WIDTH, "n_layer": 2, "n_head": num_heads, "n_positions": TOKENS}
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    return random_weights(GPT2LMHeadModel(GPT2Config(**{**sizes, **tokens, **fields})))


def converted(original: PreTrainedModel, folder: Path, **options: Any) -> PreTrainedModel:
    """Save the original to ``folder/original``, convert it to ``folder/converted`` and load it from there."""
    original.save_pretrained(folder / "original")
    convert(ConvertConfig(model=str(folder / "original"), output_dir=str(folder / "converted"), **options))
    return loaded(folder / "converted")


def loaded(folder: Path) -> PreTrainedModel:
    """Load the model of a folder, in which no weight may be missing or unexpected."""
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    return model.eval()


def largest_difference(original: PreTrainedModel, other: PreTrainedModel, *, padded: bool) -> float:
    """Largest difference between logits for two rows, where padding may hide the first third of one row."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(VOCAB_SIZE, (2, TOKENS), generator=generator)
    mask = torch.ones_like(input_ids)
    if padded:
        mask[1, : TOKENS // 3] = 0
    extra = {}
    if original.config.model_type == "gpt2":
        # generate() counts positions from the first visible token; forward leaves that to its caller.
        extra["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = original(input_ids, attention_mask=mask, **extra).logits[mask.bool()]
        actual = other(input_ids, attention_mask=mask).logits[mask.bool()]
    assert 0.3 < expected.std() < 6
    return (actual - expected).abs().max().item()


def assert_same_weights(first: PreTrainedModel, second: PreTrainedModel) -> None:
    tensors, others = first.state_dict(), second.state_dict()
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def write_gpt2_files(folder: Path) -> None:
    """A tokenizer of GPT-2's two files, with tokens for ``e`` and an accent, together and apart, and no merges."""
    tokens = ["<|endoftext|>", *"abcde", "Ġ", *"Ìģ", *"Ã©"]  # bytes as GPT-2 writes them
    text = json.dumps({token: index for index, token in enumerate(tokens)})
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")


def pickle_weights(folder: Path, *, sharded: bool = False) -> None:
    """Replace the safetensors files of a folder with files written by ``torch.save``."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if not sharded:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    weight_map = {name: f"pytorch_model-0000{number % 2 + 1}-of-00002.bin" for number, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        torch.save({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
