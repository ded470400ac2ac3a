"""The script: it converts, and what a user got wrong is one line and exit code 2, with nothing half-written."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import BloomForSequenceClassification

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from tests.support.conversion_cases import assert_same_weights, bloom, loaded, pickle_weights


SCRIPT = Path(__file__).parents[3] / "scripts" / "convert.py"


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
    assert script.main(["--model", str(source), "--output-dir", str(ours), "--set", "dtype=float32", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["converted_from"], result["model_type"]) == ("bloom", "alibi_gpt")
    assert result["files"] == ["README.md", "config.json", "generation_config.json", "model.safetensors"]
    assert script.main(["--model", str(ours), "--output-dir", str(back), "--to", "bloom"]) == 0
    assert_same_weights(loaded(back), loaded(source))


def test_a_folder_without_weights(script, source, capsys) -> None:
    (source / "model.safetensors").unlink()
    assert "no weights found, expected model.safetensors" in refusal(script, source, capsys)


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
    assert "not a weight index" in refusal(script, source, capsys)


def test_a_wrong_dtype(script, source, capsys) -> None:
    assert "'dtype' must be 'float32', 'bfloat16' or 'float16', got 'float17'" in refusal(
        script, source, capsys, "--set", "dtype=float17"
    )
    tensors = load_file(source / "model.safetensors")
    tensors["transformer.ln_f.weight"] = tensors["transformer.ln_f.weight"].to(torch.int8)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert "ln_f.weight is int8, expected one of float64" in refusal(script, source, capsys)


def test_a_quantized_checkpoint(script, source, capsys) -> None:
    edit_config(source, quantization_config={"quant_method": "gptq"})
    assert "might change the computation: quantization_config" in refusal(script, source, capsys)


def test_a_pickle(script, source, capsys) -> None:
    pickle_weights(source)
    assert "the weights are pickled" in refusal(script, source, capsys)
    path = source / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-5000])
    assert "truncated or damaged" in refusal(script, source, capsys, "--allow-pickle")
    torch.save({"transformer.ln_f.weight": print}, path)
    assert "damaged or contains more than tensors" in refusal(script, source, capsys, "--allow-pickle")
    torch.save([torch.ones(2)], path)
    assert "does not contain named tensors" in refusal(script, source, capsys, "--allow-pickle")


def test_an_output_folder_that_is_taken(script, source, tmp_path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    assert "out is not empty" in refusal(script, source, capsys)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_another_head(script, source, capsys) -> None:
    shutil.rmtree(source)
    BloomForSequenceClassification(bloom().config).save_pretrained(source)
    assert "config.json names the architecture BloomForSequenceClassification, but only language models" in refusal(
        script, source, capsys
    )


def test_a_field_nobody_knows(script, source, capsys) -> None:
    edit_config(source, mystery=1)
    assert "unknown fields that might change the computation: mystery; remove" in refusal(script, source, capsys)


def test_other_models_and_directions(script, source, capsys) -> None:
    assert "model_type is 'bloom', expected 'alibi_gpt'" in refusal(script, source, capsys, "--to", "mpt")
    assert "'to' must be 'alibi_gpt', 'bloom', 'mpt' or 'gguf', got 'falcon'" in refusal(
        script, source, capsys, "--to", "falcon"
    )
    edit_config(source, model_type="llama")
    assert "model_type is 'llama', expected one of bloom, mpt, falcon, gpt2" in refusal(script, source, capsys)
    assert "'max_shard_bytes' must be at least 1" in refusal(script, source, capsys, "--set", "max_shard_bytes=0")


def test_what_another_family_cannot_hold(script, source, capsys) -> None:
    shutil.rmtree(source)
    AlibiGPTForCausalLM(
        AlibiGPTConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, alibi_beta=2.0)
    ).save_pretrained(source)
    line = refusal(script, source, capsys, "--to", "mpt")
    assert "cannot be an MPT: alibi_beta is 2.0 (it must be 1), use_bias is True (it must be False)" in line
    line = refusal(script, source, capsys, "--to", "mpt", "--set", "as_transformers=true")
    assert "applies to conversions to alibi_gpt, not to mpt" in line


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        # What safetensors says, which has removed its file again by then, so that the disk is not full any more.
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_nothing(error, script, source, capsys, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("modeling_alibi_gpt.checkpoints.streaming.save_file", full)
    assert "the disk is full" in refusal(script, source, capsys)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_attention_heads=4", "overrides must not change num_attention_heads: the layout of the weights"),
        ("head_dim=24", "overrides must not change head_dim"),
        ("model_type=gpt2", "unknown key 'overrides.model_type'"),
        ("auto_map={}", "unknown key 'overrides.auto_map'"),
        ("hidden_act=nope", "hidden_act 'nope' is unknown to transformers"),
    ],
)
def test_overrides_that_weights_or_transformers_do_not_allow(override, message, script, source, capsys) -> None:
    """Four heads of a BLOOM with eight have the same shapes, but other rows."""
    assert message in refusal(script, source, capsys, "--set", f"overrides.{override}")


def test_a_weight_beyond_float16(script, source, capsys) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors["transformer.ln_f.weight"][3] = 1e5
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    line = refusal(script, source, capsys, "--set", "dtype=float16")
    assert "model.norm.weight has weights up to 100000, which overflow in float16" in line


def test_an_output_folder_that_is_a_link_or_here(script, source, tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert script.main(["--model", str(source), "--output-dir", str(tmp_path / "link")]) == 0
    assert loaded(tmp_path / "link").config.model_type == "alibi_gpt" and (tmp_path / "link").is_symlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert script.main(["--model", str(source), "--output-dir", "."]) == 0
    assert loaded(tmp_path / "here").config.model_type == "alibi_gpt"


def test_a_refused_gguf_leaves_no_folders(script, source, tmp_path, capsys) -> None:
    ours, out = tmp_path / "ours", tmp_path / "deep" / "out"
    assert script.main(["--model", str(source), "--output-dir", str(ours)]) == 0
    assert script.main(["--model", str(ours), "--output-dir", str(out), "--to", "gguf"]) == 2
    assert not (tmp_path / "deep").exists()
