"""GGUF files: every weight is in them, their keys say what the config says, and what cannot be said is refused."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import GPTNeoXTokenizer, MptConfig, MptForCausalLM, PreTrainedTokenizerFast

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.checkpoints.gguf.export import check_config, export_gguf
from tests.support.gguf_cases import SIZES, export


ROOT = Path(__file__).resolve().parents[3]
VARIANTS = {
    "default": {},
    "mpt": {"use_bias": False, "tie_word_embeddings": False, "clip_qkv": 6.0, "alibi_bias_max": 4.0},
}


def read_tensors(reader: GGUFReader) -> dict[str, Tensor]:
    return {
        tensor.name: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()) for tensor in reader.tensors
    }


def expected_tensors(model: AlibiGPTForCausalLM) -> dict[str, Tensor]:
    """By llama.cpp's loader of MPT: a module for each of its names, three for its one projection."""
    modules = {"token_embd": [model.model.embed_tokens], "output_norm": [model.model.norm]}
    if not model.config.tie_word_embeddings:
        modules["output"] = [model.lm_head]
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        modules |= {
            f"blk.{index}.attn_norm": [layer.input_layernorm],
            f"blk.{index}.attn_qkv": [attention.q_proj, attention.k_proj, attention.v_proj],
            f"blk.{index}.attn_output": [attention.o_proj],
            f"blk.{index}.ffn_norm": [layer.post_attention_layernorm],
            f"blk.{index}.ffn_up": [layer.mlp.up_proj],
            f"blk.{index}.ffn_down": [layer.mlp.down_proj],
        }
    return {
        f"{name}.{kind}": torch.cat([getattr(part, kind).detach() for part in parts])
        for name, parts in modules.items()
        for kind in ("weight", "bias")
        if getattr(parts[0], kind, None) is not None
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_is_in_the_file(variant: str, save: Callable, tmp_path: Path) -> None:
    model = save(**VARIANTS[variant])
    found, expected = read_tensors(export(tmp_path)), expected_tensors(model)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert sum(tensor.numel() for tensor in found.values()) == model.num_parameters()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_matrices_are_rounded_and_vectors_are_not(dtype: str, save: Callable, tmp_path: Path) -> None:
    expected = expected_tensors(save())
    for name, tensor in read_tensors(export(tmp_path, dtype=dtype)).items():
        rounded = expected[name].to(getattr(torch, dtype)).float() if tensor.ndim == 2 else expected[name]
        assert torch.equal(tensor, rounded)


def test_a_weight_beyond_float16_is_refused_and_leaves_nothing(save: Callable, tmp_path: Path) -> None:
    model = save()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 1e5
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="blk.1.ffn_up.weight has weights up to 100000, .* in float16"):
        export(tmp_path, dtype="float16")
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_say_what_the_config_says(variant: str, save: Callable, tmp_path: Path) -> None:
    config = save(**VARIANTS[variant], train_context_length=77).config
    fields = {name: field.contents() for name, field in export(tmp_path).fields.items()}
    expected = {
        "general.architecture": "mpt",
        "mpt.context_length": 77,
        "mpt.embedding_length": config.hidden_size,
        "mpt.block_count": config.num_hidden_layers,
        "mpt.feed_forward_length": config.intermediate_size,
        "mpt.attention.head_count": config.num_attention_heads,
        "mpt.attention.head_count_kv": config.num_key_value_heads,
        "mpt.attention.layer_norm_epsilon": pytest.approx(config.layer_norm_epsilon),  # float32 in the file
        "mpt.attention.max_alibi_bias": config.alibi_bias_max,
        "mpt.attention.clamp_kqv": config.clip_qkv,
    }
    expected = {name: value for name, value in expected.items() if value is not None}
    assert {name: value for name, value in fields.items() if name in expected} == expected
    assert not {name for name in fields if name.startswith("mpt.")} - set(expected)
    reader = export(tmp_path, context_length_tokens=4096)
    assert reader.get_field("mpt.context_length").contents() == 4096


def test_the_tokenizer_is_in_the_file(save: Callable, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save()
    fields = {name: field.contents() for name, field in export(tmp_path).fields.items()}
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert fields["tokenizer.ggml.tokens"] == [*names, *(f"[UNUSED{len(names) + index}]" for index in range(5))]
    kinds = [TokenType.CONTROL, *[TokenType.NORMAL] * (len(names) - 1), *[TokenType.UNUSED] * 5]
    assert fields["tokenizer.ggml.token_type"] == kinds
    # 256 bytes and one special token come before the merges, each of which makes one token.
    merges = [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]]
    assert [left + right for left, right in merges] == names[257:]
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert fields["tokenizer.ggml.bos_token_id"] == fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert not fields["tokenizer.ggml.add_bos_token"] and not fields["tokenizer.ggml.add_eos_token"]


def test_every_chat_template_is_in_the_file(save: Callable, tmp_path: Path) -> None:
    save()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "model")
    tokenizer.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(tmp_path / "model")
    reader = export(tmp_path)
    assert reader.get_field("tokenizer.chat_template").contents() == "{{ messages[0].content }}"
    assert reader.get_field("tokenizer.chat_template.tool_use").contents() == "{{ tools }}"


WRONG_FIELDS = {
    "position_method": "rope",
    "alibi_beta": 0.5,
    "alibi_slope_kind": "uniform",
    "alibi_trainable": "beta",
    "alibi_scaling": {"type": "linear", "factor": 2.0},
    "alibi_bias_inside_scaling": True,
    "hidden_act": "relu",
    "embedding_layer_norm": True,
    "qk_norm": True,
    "head_dim": 4,
    "attention_scale": 1.0,
}


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_a_field_that_mpt_lacks_is_refused(name: str, save: Callable, tmp_path: Path) -> None:
    save(**{name: WRONG_FIELDS[name]})
    with pytest.raises(
        ValueError,
        match=f"does not support this model: {name} = .* \\(expected .*\\); it supports models .*servable_mpt.json$",
    ):
        export(tmp_path)
    assert os.listdir(tmp_path) == ["model"]


def test_all_such_fields_are_named_at_once() -> None:
    fields = {name: value for name, value in WRONG_FIELDS.items() if name != "position_method"}  # which has no ALiBi
    with pytest.raises(ValueError) as refusal:
        check_config(AlibiGPTConfig(**SIZES, **fields))
    assert all(f"{name} = {value!r}" in str(refusal.value) for name, value in fields.items())
    check_config(AlibiGPTConfig(**SIZES, attention_scale=8**-0.5, alibi_beta=1))


def test_a_tokenizer_of_another_kind_is_refused(
    save: Callable, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save()
    other = PreTrainedTokenizerFast.from_pretrained(tmp_path / "model")
    other.backend_tokenizer.normalizer = normalizers.NFKC()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{other.eos_token} $A", special_tokens=[(other.eos_token, other.eos_token_id)]
    )
    other.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="normalizer = .*add_prefix_space = True.* adds 1 special tokens around"):
        export(tmp_path)


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_an_added_token_that_llama_cpp_would_find_elsewhere_is_refused(
    flag: str, save: Callable, tmp_path: Path
) -> None:
    """llama.cpp splits at every occurrence of an added token, and leaves the spaces around it."""
    save()
    other = PreTrainedTokenizerFast.from_pretrained(tmp_path / "model")
    other.add_tokens([AddedToken("<mask>", special=True), AddedToken("<sep>", **{flag: True})])
    other.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=f"tokenizer: added token '<sep>' has {flag} \\(expected none\\)$"):
        export(tmp_path)
    assert os.listdir(tmp_path) == ["model"]


def test_a_tokenizer_that_normalizes_to_nfc_is_written_as_mpts_and_said_to_differ(
    save: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Published MPTs have one of GPT-NeoX, whose class in transformers puts the normalizer there itself."""
    save()
    backend = PreTrainedTokenizerFast.from_pretrained(tmp_path / "model").backend_tokenizer
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    GPTNeoXTokenizer(vocab=backend.get_vocab(), merges=merges).save_pretrained(tmp_path / "model")
    assert export(tmp_path).get_field("tokenizer.ggml.pre").contents() == "mpt"
    assert "llama.cpp does not: pass it text in NFC" in caplog.text


def test_what_is_no_alibi_gpt_is_refused(tmp_path: Path) -> None:
    MptForCausalLM(MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=9)).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="model contains a model of type mpt, expected alibi_gpt"):
        export(tmp_path)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"dtype": "int4"}, "dtype must be one of float32, bfloat16, float16, got 'int4'"),
        ({"context_length_tokens": 0}, "context_length_tokens must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        export(tmp_path, **fields)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"pip install 'alibi-gpt\[convert\]'"):
        export_gguf(tmp_path, tmp_path / "model.gguf")


def test_a_failed_write_leaves_the_old_file(save: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save()
    (tmp_path / "model.gguf").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        export(tmp_path)
    assert (tmp_path / "model.gguf").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["model", "model.gguf"]


def test_the_script_writes_the_file(save: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("convert_script", ROOT / "scripts" / "convert.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    model = save()
    (tmp_path / "model" / "LICENSE").write_text("RAIL", encoding="utf-8")
    arguments = ["--model", str(tmp_path / "model"), "--output-dir", str(tmp_path / "out"), "--to", "gguf"]
    assert script.main([*arguments, "--set", "dtype=float64"]) == 2
    assert script.main([*arguments, "--set", "as_transformers=true"]) == 2
    assert not (tmp_path / "out").exists()
    assert script.main([*arguments, "--set", "context_length_tokens=777", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["files"] == ["LICENSE", "README.md", "model.gguf"]
    reader = GGUFReader(tmp_path / "out" / "model.gguf")
    assert reader.get_field("mpt.context_length").contents() == 777
    assert set(read_tensors(reader)) == set(expected_tensors(model))
