"""Whole folders: the same logits, tokenizers, the Hub's cache and pickles."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig, GPT2Tokenizer, PreTrainedModel

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert
from modeling_alibi_gpt.checkpoints.hub import ExportConfig, export_to_hub
from modeling_alibi_gpt.data.tokenizer_files import load_tokenizer
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer
from tests.support.conversion_cases import (
    NUM_HEADS,
    TOLERANCE,
    VOCAB_SIZE,
    assert_same_weights,
    bloom,
    converted,
    gpt2,
    largest_difference,
    loaded,
    mpt,
    pickle_weights,
    write_gpt2_files,
)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("num_heads", NUM_HEADS)
@pytest.mark.parametrize(
    ("make", "field", "value"),
    [(bloom, "embedding_layer_norm", True), (mpt, "use_bias", False), (gpt2, "position_method", "learned")],
    ids=["bloom", "mpt", "gpt2"],
)
def test_logits_are_those_of_the_original(
    make: Callable[..., PreTrainedModel], field: str, value: Any, num_heads: int, tied: bool, tmp_path: Path
) -> None:
    original = make(num_heads, tie_word_embeddings=tied)
    ours = converted(original, tmp_path)
    assert (ours.config.model_type, getattr(ours.config, field)) == ("alibi_gpt", value)
    for padded in (False, True):
        assert largest_difference(original, ours, padded=padded) < TOLERANCE


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16], ids=str)
def test_no_weight_of_a_checkpoint_in_two_dtypes_is_rounded(stored: torch.dtype, tmp_path: Path) -> None:
    """On the way in and back out; each tensor keeps its dtype in the files."""
    original = bloom()
    embedding = original.transformer.word_embeddings.weight
    embedding.data = embedding.data.to(stored).float()
    original.save_pretrained(tmp_path / "original")
    tensors = load_file(tmp_path / "original" / "model.safetensors")
    tensors["transformer.word_embeddings.weight"] = embedding.data.to(stored)
    save_file(tensors, tmp_path / "original" / "model.safetensors", metadata={"format": "pt"})
    convert(ConvertConfig(model=str(tmp_path / "original"), output_dir=str(tmp_path / "converted")))
    convert(ConvertConfig(model=str(tmp_path / "converted"), output_dir=str(tmp_path / "back"), to="bloom"))
    for name in ("converted", "back"):
        model = loaded(tmp_path / name)
        assert model.dtype == torch.float32
        assert largest_difference(original, model, padded=False) < TOLERANCE
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back["transformer.word_embeddings.weight"].dtype == stored


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


def test_license_files_come_along_everywhere(tmp_path: Path) -> None:
    texts = {"LICENSE": "RAIL", "NOTICE": "notice"}
    (tmp_path / "original").mkdir()
    for name, text in texts.items():
        (tmp_path / "original" / name).write_text(text, encoding="utf-8")
    converted(bloom(), tmp_path)
    model = str(tmp_path / "converted")
    convert(ConvertConfig(model=model, output_dir=str(tmp_path / "back"), to="bloom"))
    export_to_hub(ExportConfig(model=model, output_dir=str(tmp_path / "exported")))
    for folder in ("converted", "back", "exported"):
        assert {name: (tmp_path / folder / name).read_text(encoding="utf-8") for name in texts} == texts


def test_a_name_is_looked_up_in_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--small-bloom"
    original = bloom()
    original.save_pretrained(repository / "snapshots" / ("0" * 40))
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1234").write_text("RAIL", encoding="utf-8")
    (repository / "snapshots" / ("0" * 40) / "LICENSE").symlink_to("../../blobs/1234")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    convert(ConvertConfig(model="someone/small-bloom", output_dir=str(tmp_path / "converted")))
    assert (tmp_path / "converted" / "LICENSE").read_text(encoding="utf-8") == "RAIL"
    assert not (tmp_path / "converted" / "LICENSE").is_symlink()
    convert(ConvertConfig(model=str(tmp_path / "converted"), output_dir=str(tmp_path / "back"), to="bloom"))
    assert_same_weights(loaded(tmp_path / "back"), original)
    with pytest.raises(ValueError, match="someone/other: no such folder, and it cannot be loaded from the Hub"):
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


def test_a_file_that_can_only_be_read_whole_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = gpt2()
    ours = converted(original, tmp_path)
    weights, path = tmp_path / "original" / "model.safetensors", tmp_path / "original" / "pytorch_model.bin"
    tied = load_file(weights)
    tied["lm_head.weight"] = tied["transformer.wte.weight"]
    weights.unlink()
    torch.save(tied, path, _use_new_zipfile_serialization=False)
    reads, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: reads.append(args) or load(*args, **kwargs))
    config = ConvertConfig(
        model=str(tmp_path / "original"), output_dir=str(tmp_path / "from pickle"), allow_pickle=True
    )
    convert(config)
    assert len(reads) == 1
    assert_same_weights(loaded(tmp_path / "from pickle"), ours)


def test_a_tokenizer_that_the_model_type_tells_keeps_its_special_tokens(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "original")
    alphabet = {letter: number for number, letter in enumerate(["<|endoftext|>", *"abc"])}
    tokenizer = GPT2Tokenizer(vocab=alphabet, merges=[])
    tokenizer.save_pretrained(tmp_path / "original")
    config = tmp_path / "original" / "tokenizer_config.json"
    config.write_text('{"model_max_length": 1024}', encoding="utf-8")
    (tmp_path / "original" / "special_tokens_map.json").unlink(missing_ok=True)
    convert(ConvertConfig(model=str(tmp_path / "original"), output_dir=str(tmp_path / "converted")))
    source, copy = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("original", "converted"))
    assert copy.eos_token == source.eos_token == "<|endoftext|>"
    assert type(copy) is type(source) and copy.special_tokens_map == source.special_tokens_map
    assert copy.model_max_length == 1024 and copy("abc").input_ids == source("abc").input_ids


@pytest.mark.parametrize("to", ["bloom", "mpt"])
def test_gpt2s_two_files_are_the_same_tokenizer_beside_another_family(to: str, tmp_path: Path) -> None:
    """An MPT alone is taken to have GPT-NeoX's tokenizer, which composes the accent with its letter."""
    original = {"bloom": bloom, "mpt": mpt}[to]()
    converted(original, tmp_path)
    write_gpt2_files(tmp_path / "converted")
    convert(ConvertConfig(model=str(tmp_path / "converted"), output_dir=str(tmp_path / "back"), to=to))
    expected = load_tokenizer(tmp_path / "converted")("abc e\u0301").input_ids
    assert AutoTokenizer.from_pretrained(tmp_path / "back")("abc e\u0301").input_ids == expected
    assert AutoTokenizer.from_pretrained(tmp_path / "back").decode(expected) == "abc e\u0301"


@pytest.mark.parametrize(
    ("make", "fields", "complaint"),
    [
        (bloom, {"n_layer": "2"}, "num_hidden_layers.*expected int, got str"),
        (bloom, {"n_layer": 0}, "num_hidden_layers must be at least 1"),
        (bloom, {"layer_norm_epsilon": None}, "layer_norm_epsilon"),
        (bloom, {"initializer_range": 0}, "initializer_range"),
        (bloom, {"tie_word_embeddings": None}, "tie_word_embeddings.*expected bool, got NoneType"),
        (mpt, {"n_heads": 0}, "must be a multiple of num_attention_heads"),
        (mpt, {"max_seq_len": None}, "train_context_length.*expected int, got NoneType"),
        (mpt, {"attn_config": {"alibi": True, "alibi_bias_max": 0}}, "alibi_bias_max must be a finite number above 0"),
        (mpt, {"attn_config": {"alibi": True, "clip_qkv": -1}}, "clip_qkv must be a finite number above 0"),
        (mpt, {"attn_config": {"alibi": True, "softmax_scale": 0}}, "attention_scale must be a finite number above 0"),
    ],
)
def test_a_value_that_no_alibi_gpt_can_have_is_refused_with_folder_and_field(
    make: Callable[[], PreTrainedModel], fields: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path / "original")
    path = tmp_path / "original" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")
    start = f"^{re.escape(str(tmp_path / 'original'))}: config.json, with the overrides, gives no valid AlibiGPT"
    with pytest.raises(ValueError, match=rf"(?s){start}.*{complaint}"):
        convert(ConvertConfig(model=str(tmp_path / "original"), output_dir=str(tmp_path / "converted")))
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_overrides_reach_generate(tmp_path: Path) -> None:
    """``generate`` asks generation_config.json, whose other values are the source's."""
    original = bloom(eos_token_id=2)
    original.generation_config = GenerationConfig(
        eos_token_id=[2, 5], pad_token_id=3, max_new_tokens=7, use_cache=False
    )
    overrides = {"eos_token_id": 7, "bos_token_id": None, "use_cache": False, "alibi_beta": 2.0}
    found = converted(original, tmp_path, overrides=overrides).generation_config
    assert (found.eos_token_id, found.bos_token_id, found.use_cache) == (7, None, False)
    assert (found.pad_token_id, found.max_new_tokens) == (3, 7)
    source, written = (
        json.loads((tmp_path / name / "generation_config.json").read_text(encoding="utf-8"))
        for name in ("original", "converted")
    )
    assert written == source | {"eos_token_id": 7, "bos_token_id": None, "use_cache": False}


GENERATION = {"do_sample": True, "max_length": 17, "temperature": 0.3, "suppress_tokens": [7], "min_p": 0.1}


def alibi_gpt_like_mpt(**fields: Any) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return AlibiGPTForCausalLM(AlibiGPTConfig(**{**sizes, "use_bias": False, **fields}))


def save_with_settings_in_config(model: PreTrainedModel, folder: Path) -> None:
    """Generation settings where transformers looks for them if there is no generation_config.json."""
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | GENERATION), encoding="utf-8")


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (gpt2, {"to": "alibi_gpt"}),
        (alibi_gpt_like_mpt, {"to": "mpt"}),
        (alibi_gpt_like_mpt, {"to": "mpt", "flavour": "llm-foundry"}),
    ],
    ids=["in", "out", "out to llm-foundry"],
)
def test_generation_settings_in_the_config_come_along_both_ways(
    make: Callable[..., PreTrainedModel], options: dict[str, str], tmp_path: Path
) -> None:
    save_with_settings_in_config(make(bos_token_id=3, eos_token_id=4), tmp_path / "original")
    convert(ConvertConfig(model=str(tmp_path / "original"), output_dir=str(tmp_path / "converted"), **options))
    source, copy = (loaded(tmp_path / name).generation_config.to_diff_dict() for name in ("original", "converted"))
    assert source | GENERATION | {"bos_token_id": 3, "eos_token_id": 4} == source
    assert copy | {"_from_model_config": True} == source


def test_overrides_replace_what_the_config_says_of_generation(tmp_path: Path) -> None:
    save_with_settings_in_config(bloom(eos_token_id=2), tmp_path / "original")
    expected = {"eos_token_id": 7, "bos_token_id": None, "use_cache": False}
    model, output_dir = str(tmp_path / "original"), str(tmp_path / "converted")
    convert(ConvertConfig(model=model, output_dir=output_dir, overrides=expected))
    found = loaded(tmp_path / "converted").generation_config.to_dict()
    assert found | expected | GENERATION == found


def test_a_config_without_generation_settings_gives_no_file_of_them(tmp_path: Path) -> None:
    bloom(eos_token_id=2).save_pretrained(tmp_path / "original")
    (tmp_path / "original" / "generation_config.json").unlink()
    convert(ConvertConfig(model=str(tmp_path / "original"), output_dir=str(tmp_path / "converted")))
    assert not (tmp_path / "converted" / "generation_config.json").exists()


@pytest.mark.parametrize("setting", [{"allow_pickle": True}, {"max_shard_bytes": 1000}])
def test_settings_without_effect_are_refused(setting: dict[str, int], tmp_path: Path) -> None:
    converted(gpt2(), tmp_path)
    config = ConvertConfig(model=str(tmp_path / "converted"), output_dir=str(tmp_path / "model"), to="gguf", **setting)
    with pytest.raises(ValueError, match=f"{next(iter(setting))} (applies to conversions to|does not apply to)"):
        convert(config)
