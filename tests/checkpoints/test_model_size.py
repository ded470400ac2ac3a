"""Shapes, numbers and memory of a model, from its config alone, against models that were built."""

from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.checkpoints import model_size
from modeling_alibi_gpt.checkpoints.model_size import (
    TRAINING_BYTES,
    check_memory,
    check_model_memory,
    format_bytes,
    memory_bytes,
    num_parameters,
    weight_shapes,
)
from modeling_alibi_gpt.position_methods import POSITION_METHODS


SIZES = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 2},
    {"num_key_value_heads": 1, "head_dim": 10},
    {"tie_word_embeddings": False},
    {"use_bias": False},
    {"embedding_layer_norm": True},
    {"embedding_layer_norm": True, "use_bias": False, "tie_word_embeddings": False},
    {"qk_norm": True},
    {"intermediate_size": 7},
    {"train_context_length": 9},
    {"hidden_act": "prelu"},
    {"num_hidden_layers": 1, "num_attention_heads": 1},
    {"kerple_variant": "power"},
    {"fire_shared_by_layers": True, "fire_hidden_size": 5},
    {"t5_num_buckets": 10},
]


LEARNED_SLOPES = [{"alibi_trainable": kind} for kind in ("beta", "slopes")]  # another method has none to learn


@pytest.mark.parametrize(
    ("method", "fields"), [*product(POSITION_METHODS, VARIANTS), *product(["alibi"], LEARNED_SLOPES)], ids=str
)
def test_shapes_are_those_of_the_model_that_is_built(method: str, fields: dict[str, Any]) -> None:
    config = AlibiGPTConfig(**{**SIZES, "position_method": method, **fields})
    with torch.device("meta"):
        model = AlibiGPTForCausalLM(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    shapes = weight_shapes(config)
    assert {name: shapes.get(name) for name in shapes.names()} == expected
    assert shapes.num_tensors == len(expected)
    assert num_parameters(config) == shapes.num_parameters == model.num_parameters()


@pytest.mark.parametrize("name", ["model.layers.3.mlp.up_proj.weight", "model.layers.x.y", "lm_head.weight", "model"])
def test_a_name_without_a_weight_has_no_shape(name: str) -> None:
    assert weight_shapes(AlibiGPTConfig(**SIZES)).get(name) is None


@pytest.mark.parametrize("name", ["vocab_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"])
def test_a_config_of_any_size_is_counted_at_once(name: str) -> None:
    config = AlibiGPTConfig(**{**SIZES, "head_dim": 4, "num_key_value_heads": None, name: 10**12})
    assert num_parameters(config) > 10**13
    with pytest.raises(ValueError, match=rf"parameters of this model \(.*{name} 1000000000000.* need .*iB of memory"):
        check_model_memory(config)


def test_a_refusal_says_what_is_needed_and_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_size, "memory_bytes", lambda: 3 * 2**30)
    check_memory(3 * 2**30, "they")
    with pytest.raises(ValueError, match="they need 3.5 GiB of memory, but only 3.0 GiB exist"):
        check_memory(7 * 2**29, "they")
    config = AlibiGPTConfig(**{**SIZES, "vocab_size": 5 * 10**6})  # 480 MB, twice that to train
    check_model_memory(config, TRAINING_BYTES)
    monkeypatch.setattr(model_size, "memory_bytes", lambda: 6 * 10**8)
    check_model_memory(config)
    with pytest.raises(ValueError, match="parameters with gradients"):
        check_model_memory(config, TRAINING_BYTES)


def test_memory_is_that_of_the_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    total = psutil.virtual_memory().total
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for limit, expected in (("max\n", total), (f"{total // 2}\n", total // 2), (f"{2 * total}\n", total)):
        (tmp_path / "memory.max").write_text(limit, encoding="ascii")
        monkeypatch.setattr(model_size, "_CGROUP_LIMIT", tmp_path / "memory.max")
        assert memory_bytes() == expected


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (1024, "1.0 KiB"), (2**71, "2,048.0 EiB")],
)
def test_bytes_are_written_in_their_unit(num_bytes: int, expected: str) -> None:
    assert format_bytes(num_bytes) == expected
