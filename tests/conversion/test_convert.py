"""Whole folders: published configs, tokenizers, the Hub's cache and pickles."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from conversion_cases import (
    TOKENS,
    VOCAB_SIZE,
    assert_same_weights,
    bloom,
    converted,
    falcon,
    gpt2,
    loaded,
    mpt,
    pickle_weights,
)
from datasets import Dataset
from transformers import AutoTokenizer, GenerationConfig

from modeling_alibi_gpt.conversion.convert import FAMILIES, ConvertConfig, convert
from modeling_alibi_gpt.conversion.hub_export import ExportConfig, export_to_hub
from modeling_alibi_gpt.training.tokenization import train_tokenizer


# As on the Hub, but for their sizes: old names, what other libraries left there, and no fields of their default.
PUBLISHED = {
    "bloom": {
        **{"architectures": ["BloomForCausalLM"], "attention_softmax_in_fp32": True, "bias_dropout_fusion": True},
        **{"masked_softmax_fusion": True, "n_embed": 48, "n_inner": None, "n_layer": 2, "num_attention_heads": 4},
        **{"offset_alibi": 100, "pretraining_tp": 2, "seq_length": 4096, "skip_bias_add": True, "unk_token_id": 0},
        **{"skip_bias_add_qkv": False, "slow_but_exact": False, "torch_dtype": "float32", "vocab_size": VOCAB_SIZE},
        **{"transformers_version": "4.20.0", "use_cache": True},
    },
    "mpt": {
        **{"architectures": ["MPTForCausalLM"], "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig"}},
        "attn_config": {
            **{"alibi": True, "alibi_bias_max": 16, "attn_impl": "torch", "attn_pdrop": 0, "clip_qkv": 6},
            **{"attn_type": "multihead_attention", "attn_uses_sequence_id": False, "prefix_lm": False},
            **{"qk_ln": False, "softmax_scale": None},
        },
        **{"d_model": 48, "n_heads": 4, "n_layers": 2, "vocab_size": VOCAB_SIZE, "max_seq_len": 65536},
        **{"init_config": {"name": "kaiming_normal_"}, "learned_pos_emb": True, "no_bias": True, "verbose": 0},
        **{"norm_type": "low_precision_layernorm", "resid_pdrop": 0, "tokenizer_name": "EleutherAI/gpt-neox-20b"},
    },
    "falcon": {
        **{"architectures": ["FalconForCausalLM"], "alibi": True, "bias": True, "hidden_size": 48},
        **{"apply_residual_connection_post_layernorm": False, "multi_query": False, "new_decoder_architecture": False},
        **{"num_attention_heads": 4, "num_hidden_layers": 2, "parallel_attn": False, "vocab_size": VOCAB_SIZE},
        **{"bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.27.4"},
    },
    "gpt2": {
        **{"architectures": ["GPT2LMHeadModel"], "n_ctx": TOKENS, "n_embd": 48, "n_head": 4, "n_layer": 2},
        **{"n_positions": TOKENS, "summary_type": "cls_index", "vocab_size": VOCAB_SIZE, "_num_labels": 1},
        **{"task_specific_params": {"text-generation": {"do_sample": True}}, "bos_token_id": 0, "eos_token_id": 0},
    },
}
EXPECTED = {
    "bloom": {"train_context_length": 4096, "embedding_layer_norm": True, "pad_token_id": None},
    "mpt": {"train_context_length": 65536, "alibi_bias_max": 16, "clip_qkv": 6, "use_bias": False},
    "falcon": {"train_context_length": 2048, "intermediate_size": 192, "alibi_bias_inside_scaling": True},
    "gpt2": {
        "train_context_length": TOKENS,
        "position_method": "learned",
        "embd_pdrop": 0.1,
        "hidden_act": "gelu_new",
    },
}
MAKERS: dict[str, Callable[..., Any]] = {"bloom": bloom, "mpt": mpt, "falcon": falcon, "gpt2": gpt2}


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_published_configs_are_read(model_type: str, tmp_path: Path) -> None:
    width = {"bloom": "hidden_size", "mpt": "d_model", "falcon": "hidden_size", "gpt2": "n_embd"}[model_type]
    original = MAKERS[model_type](4, **{width: 48})
    original.base_model.save_pretrained(tmp_path / "original")
    fields = {"model_type": model_type, **PUBLISHED[model_type]}
    (tmp_path / "original" / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    convert(ConvertConfig(model=str(tmp_path / "original"), output_dir=str(tmp_path / "converted")))
    config = loaded(tmp_path / "converted").config
    assert {name: getattr(config, name) for name in EXPECTED[model_type]} == EXPECTED[model_type]


def test_tokenizer_generation_config_and_template_come_along_both_ways(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(Dataset.from_dict({"text": ["to be or not to be"]}), 300)
    tokenizer.chat_template = "{{ messages[0].content }}!"
    original = bloom()
    tokenizer.save_pretrained(tmp_path / "original")
    original.generation_config = GenerationConfig(max_new_tokens=7, eos_token_id=2)
    converted(original, tmp_path)
    convert(ConvertConfig(model=str(tmp_path / "converted"), output_dir=str(tmp_path / "back"), to="bloom"))
    for name in ("converted", "back"):
        found = AutoTokenizer.from_pretrained(tmp_path / name)
        assert found("not to be").input_ids == tokenizer("not to be").input_ids
        assert found.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello!"
        assert loaded(tmp_path / name).generation_config.max_new_tokens == 7


def test_a_converted_model_can_be_exported_and_generates(tmp_path: Path) -> None:
    original = mpt()
    ours = converted(original, tmp_path)
    prompt = torch.randint(VOCAB_SIZE, (1, 5), generator=torch.Generator().manual_seed(0))
    expected = original.generate(prompt, max_new_tokens=8, do_sample=False)
    assert torch.equal(ours.generate(prompt, max_new_tokens=8, do_sample=False), expected)
    export_to_hub(ExportConfig(model=str(tmp_path / "converted"), output_dir=str(tmp_path / "exported")))


def test_a_name_is_looked_up_in_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--small-bloom"
    original = bloom()
    original.save_pretrained(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    convert(ConvertConfig(model="someone/small-bloom", output_dir=str(tmp_path / "converted")))
    convert(ConvertConfig(model=str(tmp_path / "converted"), output_dir=str(tmp_path / "back"), to="bloom"))
    assert_same_weights(loaded(tmp_path / "back"), original)
    with pytest.raises(ValueError, match="someone/other: no such folder, and it cannot be had from the Hub"):
        convert(ConvertConfig(model="someone/other", output_dir=str(tmp_path / "other")))


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
def test_pickles_are_read_when_allowed(sharded: bool, tmp_path: Path) -> None:
    original = gpt2()
    ours = converted(original, tmp_path)
    pickle_weights(tmp_path / "original", sharded=sharded)
    config = ConvertConfig(
        model=str(tmp_path / "original"), output_dir=str(tmp_path / "from pickle"), allow_pickle=True
    )
    convert(config)
    assert_same_weights(loaded(tmp_path / "from pickle"), ours)
