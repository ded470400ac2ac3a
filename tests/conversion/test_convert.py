"""Whole folders: published configs, tokenizers, the Hub's cache, pickles, and bad input through the script."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from conversion_cases import TOKENS, VOCAB_SIZE, assert_same_weights, bloom, converted, falcon, gpt2, loaded, mpt
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BloomForSequenceClassification, GenerationConfig

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.conversion.convert import FAMILIES, ConvertConfig, convert
from modeling_alibi_gpt.conversion.hub_export import ExportConfig, export_to_hub
from modeling_alibi_gpt.training.tokenization import train_tokenizer


SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "convert.py"
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


def pickle_weights(folder: Path, *, sharded: bool = False) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if not sharded:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    weight_map = {name: f"pytorch_model-0000{number % 2 + 1}-of-00002.bin" for number, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        torch.save({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("script_convert", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLOOM in one file and in shards."""
    folder = tmp_path_factory.mktemp("originals")
    bloom().save_pretrained(folder / "whole")
    bloom().save_pretrained(folder / "sharded", max_shard_size=150_000)
    return folder


@pytest.fixture
def source(originals: Path, tmp_path: Path) -> Path:
    """A copy of the BLOOM in one file, to be spoilt."""
    return Path(shutil.copytree(originals / "whole", tmp_path / "source"))


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


def refusal(script: ModuleType, source: Path | str, capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """The one line of a refused conversion, which leaves nothing behind."""
    folder = Path(source).parent if isinstance(source, Path) else Path.cwd()
    before = sorted(folder.iterdir())
    capsys.readouterr()
    assert script.main(["--model", str(source), "--output-dir", str(folder / "out"), *arguments]) == 2
    assert sorted(folder.iterdir()) == before
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_the_script_converts(script: ModuleType, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert script.main(["--model", str(source), "--output-dir", str(ours), "--set", "dtype=float32"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["converted_from"], result["model_type"]) == ("bloom", "alibi_gpt")
    assert result["files"] == ["config.json", "generation_config.json", "model.safetensors"]
    assert script.main(["--model", str(ours), "--output-dir", str(back), "--to", "bloom"]) == 0
    assert_same_weights(loaded(back), loaded(source))


def test_a_folder_without_weights(script, source, capsys) -> None:
    (source / "model.safetensors").unlink()
    assert "no weights here, expected model.safetensors" in refusal(script, source, capsys)


def test_a_folder_without_config(script, source, capsys) -> None:
    (source / "config.json").unlink()
    assert "no model here, expected config.json" in refusal(script, source, capsys)


def test_a_name_that_is_nowhere(script, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "nowhere/nothing: no such folder" in refusal(script, "nowhere/nothing", capsys)
    assert "no such folder" in refusal(script, "not/a/name", capsys)


@pytest.mark.parametrize("kept", [0.5, 0.0])
def test_a_truncated_shard(kept: float, script, originals, tmp_path, capsys) -> None:
    source = Path(shutil.copytree(originals / "sharded", tmp_path / "source"))
    path = sorted(source.glob("*.safetensors"))[1]
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    assert f"{path.name} is truncated or damaged" in refusal(script, source, capsys)


def test_an_index_that_names_a_missing_file(script, originals, tmp_path, capsys) -> None:
    source = Path(shutil.copytree(originals / "sharded", tmp_path / "source"))
    path = sorted(source.glob("*.safetensors"))[1]
    path.unlink()
    assert f"names {path.name}, which is not in the folder" in refusal(script, source, capsys)


def test_an_index_that_names_a_missing_tensor(script, originals, tmp_path, capsys) -> None:
    source = Path(shutil.copytree(originals / "sharded", tmp_path / "source"))
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index["weight_map"]["transformer.h.0.extra"] = sorted(source.glob("*.safetensors"))[0].name
    path.write_text(json.dumps(index), encoding="utf-8")
    assert "lacks transformer.h.0.extra" in refusal(script, source, capsys)
    path.write_text("{", encoding="utf-8")
    assert "not an index of weights" in refusal(script, source, capsys)


def test_a_wrong_dtype(script, source, capsys) -> None:
    assert "dtype must be one of float32" in refusal(script, source, capsys, "--set", "dtype=float17")
    tensors = load_file(source / "model.safetensors")
    tensors["transformer.ln_f.weight"] = tensors["transformer.ln_f.weight"].to(torch.int8)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert "ln_f.weight is int8, expected one of float64" in refusal(script, source, capsys)


def test_a_quantised_checkpoint(script, source, capsys) -> None:
    edit_config(source, quantization_config={"quant_method": "gptq"})
    assert "config.json holds quantization_config" in refusal(script, source, capsys)


def test_a_pickle(script, source, capsys) -> None:
    pickle_weights(source)
    assert "the weights are pickled" in refusal(script, source, capsys)
    path = source / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-5000])
    assert "truncated or damaged" in refusal(script, source, capsys, "--allow-pickle")
    torch.save({"transformer.ln_f.weight": print}, path)
    assert "damaged or holds more than tensors" in refusal(script, source, capsys, "--allow-pickle")
    torch.save([torch.ones(2)], path)
    assert "something else than named tensors" in refusal(script, source, capsys, "--allow-pickle")


def test_an_output_folder_that_is_taken(script, source, tmp_path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    assert "out is not empty" in refusal(script, source, capsys)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_another_head(script, source, capsys) -> None:
    shutil.rmtree(source)
    BloomForSequenceClassification(bloom().config).save_pretrained(source)
    assert "config.json says BloomForSequenceClassification; language models" in refusal(script, source, capsys)


def test_a_field_nobody_knows(script, source, capsys) -> None:
    edit_config(source, mystery=1)
    assert "config.json holds mystery, of which it is not known" in refusal(script, source, capsys)


def test_other_models_and_directions(script, source, capsys) -> None:
    assert "model_type is 'bloom', expected 'alibi_gpt'" in refusal(script, source, capsys, "--to", "mpt")
    assert "to must be one of alibi_gpt, bloom, mpt, got 'falcon'" in refusal(script, source, capsys, "--to", "falcon")
    edit_config(source, model_type="llama")
    assert "model_type is 'llama', expected one of bloom, mpt, falcon, gpt2" in refusal(script, source, capsys)
    assert "max_shard_bytes must be at least 1" in refusal(script, source, capsys, "--set", "max_shard_bytes=0")


def test_what_another_family_cannot_hold(script, source, capsys) -> None:
    shutil.rmtree(source)
    AlibiGPTForCausalLM(
        AlibiGPTConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, alibi_beta=2.0)
    ).save_pretrained(source)
    line = refusal(script, source, capsys, "--to", "mpt")
    assert "cannot be an MPT: alibi_beta is 2.0 (it must be 1), use_bias is True (it must be False)" in line
    line = refusal(script, source, capsys, "--to", "mpt", "--set", "as_transformers=true")
    assert "are for conversions to alibi_gpt, not to mpt" in line


def test_a_full_disk_leaves_nothing(script, source, capsys, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modeling_alibi_gpt.conversion.streaming.save_file", full)
    assert "the disk is full" in refusal(script, source, capsys)
