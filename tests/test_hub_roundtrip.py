"""Loading: through the Auto classes with the package, and as remote code in a process that has no package."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import modeling_alibi_gpt
from modeling_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.checkpoints.hub import AUTO_MAP, ExportConfig, export_to_hub
from modeling_alibi_gpt.data.tokenizer_files import load_tokenizer
from tests.support.conversion_cases import write_gpt2_files


HEADS = {
    "AutoModel": AutoModel,
    "AutoModelForCausalLM": AutoModelForCausalLM,
    "AutoModelForQuestionAnswering": AutoModelForQuestionAnswering,
    "AutoModelForSequenceClassification": AutoModelForSequenceClassification,
    "AutoModelForTokenClassification": AutoModelForTokenClassification,
}
INPUT_IDS = [[5, 9, 2, 60, 33, 7, 7, 1]]
# Runs without this package: loads each exported head, saves it again, loads that, and prints every output tensor.
REMOTE_PROCESS = """
import importlib.util, json, sys
import torch, transformers
assert importlib.util.find_spec("modeling_alibi_gpt") is None
outputs = {}
for head, folder in json.loads(sys.argv[1]).items():
    auto = getattr(transformers, head)
    for attempt in range(2):
        model = auto.from_pretrained(folder, trust_remote_code=True).eval()
        with torch.no_grad():
            result = model(torch.tensor(json.loads(sys.argv[2])), use_cache=False)
        outputs[f"{head}-{attempt}"] = [tensor.double().tolist() for tensor in result.to_tuple()]
        folder = folder + "-resaved"
        model.save_pretrained(folder)
print(json.dumps(outputs))
"""


@pytest.fixture
def heads(tmp_path: Path) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    config = AlibiGPTConfig(
        vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, num_labels=3, pad_token_id=0
    )
    return {head: auto.from_config(config).eval() for head, auto in HEADS.items()}


def _outputs(model: torch.nn.Module) -> list[list]:
    with torch.no_grad():
        result = model(torch.tensor(INPUT_IDS), use_cache=False)
    return [tensor.double().tolist() for tensor in result.to_tuple()]


def test_every_head_loads_through_auto_classes(heads, tmp_path: Path) -> None:
    for head, model in heads.items():
        model.save_pretrained(tmp_path / head)
        loaded = HEADS[head].from_pretrained(tmp_path / head).eval()
        assert type(loaded) is type(model)
        assert _outputs(loaded) == _outputs(model)


def test_every_head_loads_as_remote_code_and_can_be_saved_again(heads, tmp_path: Path) -> None:
    folders = {}
    for head, model in heads.items():
        model.save_pretrained(tmp_path / head)
        export_to_hub(ExportConfig(model=str(tmp_path / head), output_dir=str(tmp_path / f"{head}-hub")))
        folders[head] = str(tmp_path / f"{head}-hub")
    arguments = [json.dumps(folders), json.dumps(INPUT_IDS)]
    outputs = json.loads(_without_the_package(REMOTE_PROCESS, arguments, tmp_path))
    for head, model in heads.items():
        assert outputs[f"{head}-0"] == _outputs(model), head
        assert outputs[f"{head}-1"] == _outputs(model), head


def _without_the_package(code: str, arguments: list[str], tmp_path: Path) -> str:
    """The last line that a process prints which cannot import this package."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # `-P` keeps the working directory off the path, and an editable install is hidden by its import hook's name.
    root = str(Path(modeling_alibi_gpt.__file__).parents[1])
    hide = f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path = [path for path in sys.path if path not in ("", {root!r})]
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", hide + code, *arguments],
        cwd=tmp_path,
        env={**environment, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_tokenizer_that_only_the_package_tells_loads_without_it(heads, tmp_path: Path) -> None:
    """GPT-2's two files say nothing of a class, nor does this model's type."""
    heads["AutoModelForCausalLM"].save_pretrained(tmp_path / "model")
    write_gpt2_files(tmp_path / "model")
    export_to_hub(ExportConfig(model=str(tmp_path / "model"), output_dir=str(tmp_path / "hub")))
    code = "import json, sys, transformers; load = transformers.AutoTokenizer.from_pretrained\n"
    code += "print('\\n' + json.dumps(load(sys.argv[1])(sys.argv[2]).input_ids))"
    found = json.loads(_without_the_package(code, [str(tmp_path / "hub"), "abc e\u0301"], tmp_path))
    assert found == load_tokenizer(tmp_path / "model")("abc e\u0301").input_ids


def test_saving_an_exported_model_from_the_package_leaves_no_map_without_code(heads, tmp_path: Path) -> None:
    heads["AutoModelForCausalLM"].save_pretrained(tmp_path / "model")
    export_to_hub(ExportConfig(model=str(tmp_path / "model"), output_dir=str(tmp_path / "hub")))
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["auto_map"] == AUTO_MAP
    AutoModelForCausalLM.from_pretrained(tmp_path / "hub").save_pretrained(tmp_path / "again")
    AutoConfig.from_pretrained(tmp_path / "hub").save_pretrained(tmp_path / "config-only")
    for folder in ("again", "config-only"):
        assert "auto_map" not in json.loads((tmp_path / folder / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert _outputs(again) == _outputs(heads["AutoModelForCausalLM"])


def test_export_copies_the_shards_of_the_index_and_no_others(heads, tmp_path: Path) -> None:
    heads["AutoModelForCausalLM"].save_pretrained(tmp_path / "model", max_shard_size=40_000)
    shards = {path.name for path in (tmp_path / "model").glob("*.safetensors")}
    (tmp_path / "model" / "model-of-yesterday.safetensors").write_bytes(b"")
    export_to_hub(ExportConfig(model=str(tmp_path / "model"), output_dir=str(tmp_path / "hub")))
    assert len(shards) > 1 and {path.name for path in (tmp_path / "hub").glob("*.safetensors")} == shards
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hub")
    assert _outputs(exported) == _outputs(heads["AutoModelForCausalLM"])


def test_export_refuses_what_it_cannot_carry(heads, tmp_path: Path) -> None:
    heads["AutoModelForCausalLM"].save_pretrained(tmp_path / "model")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ValueError, match="is not empty"):
        export_to_hub(ExportConfig(model=str(tmp_path / "model"), output_dir=str(tmp_path / "taken")))
    with pytest.raises(ValueError, match="no model here"):
        export_to_hub(ExportConfig(model=str(tmp_path / "missing"), output_dir=str(tmp_path / "out")))
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights found, expected model.safetensors"):
        export_to_hub(ExportConfig(model=str(tmp_path / "model"), output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("head", "fields", "dropped"),
    [
        ("AutoModelForCausalLM", {"position_method": "learned"}, "model.position_method.embedding.weight"),
        ("AutoModelForCausalLM", {"tie_word_embeddings": False}, "lm_head.weight"),
        ("AutoModelForCausalLM", {"alibi_trainable": "beta"}, "model.position_method.bias_log_beta"),
        ("AutoModel", {"position_method": "learned"}, "position_method.embedding.weight"),
        ("AutoModelForTokenClassification", {"tie_word_embeddings": False}, "score.weight"),
        ("AutoModelForQuestionAnswering", {}, "qa_outputs.bias"),
    ],
)
def test_export_refuses_a_model_of_which_weights_are_missing(
    head: str, fields: dict[str, Any], dropped: str, tmp_path: Path
) -> None:
    """Nobody trains an export: ``from_pretrained`` would initialize them with only a warning."""
    config = AlibiGPTConfig(vocab_size=61, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, **fields)
    HEADS[head].from_config(config).save_pretrained(tmp_path / "model")
    export_to_hub(ExportConfig(model=str(tmp_path / "model"), output_dir=str(tmp_path / "complete")))
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    del tensors[dropped]
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"model: weights of AlibiGPT\w+ are missing \(1\), e\.g\. {dropped}"):
        export_to_hub(ExportConfig(model=str(tmp_path / "model"), output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
