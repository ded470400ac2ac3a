"""Checkpoint folders that are broken or hostile: indexes that leave the folder, shards that lie, broken tokenizers."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.bad_input.loading import Spoil, first_for_others, loading_cases
from tests.bad_input.refusals import Case, Inputs, config_file, edit_json, experiment, parametrized, refused


INDEX = "model.safetensors.index.json"
NO_INDEX = "not a weight index, expected JSON with a weight_map"
INDEXES: dict[str, tuple[Any, str]] = {
    "without a map": ({}, NO_INDEX),
    "with an empty map": ({"weight_map": {}}, NO_INDEX),
    "whose map is a list": ({"weight_map": ["model.safetensors"]}, NO_INDEX),
    "whose map is text": ({"weight_map": "model.safetensors"}, NO_INDEX),
    "whose files are numbers": ({"weight_map": {"model.norm.weight": 5}}, NO_INDEX),
    "whose files are lists": ({"weight_map": {"model.norm.weight": ["x"]}}, NO_INDEX),
    "that is a list": ([1], NO_INDEX),
    "that is a number": (5, NO_INDEX),
}
NAMES = ["../../secret.safetensors", "../model/x.safetensors", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b"]


def _index(content: Any, model: Path) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (model / INDEX).write_text(text, encoding="utf-8")


def _metadata(change: Callable[[dict[str, Any]], Any], model: Path) -> None:
    index = json.loads((model / INDEX).read_text(encoding="utf-8"))
    change(index)
    _index(index, model)


def _first_shard(name: str, model: Path) -> None:
    """One weight of an index is said to lie in the file ``name``."""
    index = json.loads((model / INDEX).read_text(encoding="utf-8"))
    index["weight_map"][min(index["weight_map"])] = name
    _index(index, model)


def _escape(model: Path) -> None:
    """A shard that exists, is whole and lies two folders further up."""
    shards = sorted(model.glob("*.safetensors"))
    index = json.loads((model / INDEX).read_text(encoding="utf-8"))
    shutil.move(shards[0], model.parents[1] / "secret.safetensors")
    outside = "../../secret.safetensors"
    index["weight_map"] = {
        key: outside if name == shards[0].name else name for key, name in index["weight_map"].items()
    }
    _index(index, model)


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any], model: Path) -> None:
    path = model / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def _cut(num_bytes: int, model: Path) -> None:
    path = sorted(model.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:num_bytes])


def _claim(model: Path) -> None:
    """A header that claims a tensor of terabytes in a file of bytes."""
    header = {"model.norm.weight": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
    text = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)


def _without(pattern: str, model: Path) -> None:
    for path in model.glob(pattern):
        path.unlink()


def _text(name: str, text: str, model: Path) -> None:
    (model / name).write_text(text, encoding="utf-8")


def _index_cases() -> list[Case]:
    contents, claims, shards = [], [], []
    for name, (content, message) in INDEXES.items():
        contents += loading_cases(f"an index {name}", partial(_index, content), message, sharded=True)
    contents += loading_cases("an index cut short", partial(_index, '{"weight_map": '), NO_INDEX, sharded=True)
    contents += loading_cases("an index nested deep", partial(_index, "[" * 10**5), NO_INDEX, sharded=True)
    metadata: dict[str, Callable[[dict[str, Any]], Any]] = {
        "without metadata": lambda index: index.pop("metadata"),
        "whose metadata is a list": lambda index: index.update(metadata=[1]),
    }
    for name, change in metadata.items():
        claims += loading_cases(f"an index {name}", partial(_metadata, change), "no metadata mapping", sharded=True)
    for name in NAMES:
        hostile = partial(_first_shard, name)
        shards += loading_cases(f"a shard named {name!r}", hostile, "which is not a file in its folder", sharded=True)
    shards += loading_cases("a shard elsewhere", _escape, "which is not a file in its folder", sharded=True)
    return [*first_for_others(contents), *first_for_others(claims), *first_for_others(shards)]


def _weight_cases() -> list[Case]:
    spoils: dict[str, tuple[Spoil, str, bool]] = {
        "a truncated file": (partial(_cut, -1), "is truncated or damaged", False),
        "a truncated shard": (partial(_cut, -1), "is truncated or damaged", True),
        "an empty file": (partial(_cut, 0), "is truncated or damaged", False),
        "a header alone": (partial(_cut, 8), "is truncated or damaged", False),
        "a header of terabytes": (_claim, "is truncated or damaged", False),
        "a missing shard": (partial(_without, "*-00001-of-*.safetensors"), "which is not in the folder", True),
        "no weights": (
            partial(_without, "*.safetensors"),
            "'alibi-gpt convert --allow-pickle' reads pickled ones",
            False,
        ),
        "a missing weight": (
            partial(_tensors, lambda t: t.pop("model.norm.weight")),
            "are missing (1), e.g. model.n",
            False,
        ),
        "another shape": (
            partial(_tensors, lambda t: t.update({"model.norm.weight": torch.ones(17)})),
            "its config requires model.norm.weight of shape (16,), but the weights have (17,)",
            False,
        ),
        "a strange weight": (
            partial(_tensors, lambda t: t.update({"model.extra": torch.ones(1)})),
            "weights do not belong to the model in its config (1), e.g. model.extra",
            False,
        ),
        "a weight elsewhere": (partial(_first_shard, "model-00002-of-00002.safetensors"), "", True),
    }
    cases = [
        case
        for name, (spoil, message, sharded) in spoils.items()
        for case in loading_cases(name, spoil, message, sharded=sharded)
    ]
    return first_for_others(cases)


def _tokenizer_cases() -> list[Case]:
    spoils: dict[str, Spoil] = {
        "cut": partial(_text, "tokenizer.json", "{"),
        "that is a list": partial(_text, "tokenizer.json", "[]"),
        "nested deep": partial(_text, "tokenizer.json", "[" * 10**5),
        "without its file": partial(_without, "tokenizer.json"),
        "with a broken config": partial(_text, "tokenizer_config.json", "[1"),
    }
    reading = ("evaluate", "extrapolate", "generate", "export_to_hub", "sweep_beta", "train", "compare")
    cases = [
        case
        for name, spoil in spoils.items()
        for case in loading_cases(f"a tokenizer {name}", spoil, "")
        if case.script in reading
    ]
    return first_for_others(cases)


def _far_id(model: Path) -> None:
    """Of as many tokens as before, one has an id far beyond the embeddings."""
    path = model / "tokenizer.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["model"]["vocab"][max(fields["model"]["vocab"], key=fields["model"]["vocab"].get)] = 10**6
    path.write_text(json.dumps(fields), encoding="utf-8")


def _far_id_around_texts(model: Path) -> None:
    special = {"[CLS]": {"id": "[CLS]", "ids": [10**6], "tokens": ["[CLS]"]}}
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    around = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
    edit_json(model / "tokenizer.json", post_processor=around)


def _vocabulary_cases() -> list[Case]:
    reading = ("evaluate", "extrapolate", "generate", "export_to_hub", "sweep_beta", "train", "compare", "to_gguf")
    message = "the tokenizer has ids up to 1000000, but the model has 264 embeddings"
    return [
        case
        for name, spoil in {"with an id": _far_id, "that puts an id around texts": _far_id_around_texts}.items()
        for case in loading_cases(f"a tokenizer {name} beyond the vocabulary", spoil, message)
        if str(case).rpartition("(")[2].rstrip(")") in reading
    ]


def _quantization_cases() -> list[Case]:
    said: dict[str, tuple[Any, str]] = {
        "of an unknown method": ({"quant_method": "nonsense", "bits": 3}, "quant_method 'nonsense' cannot be used"),
        "without a method": ({"bits": 3}, "quant_method None cannot be used"),
        "that is empty": ({}, "quant_method None cannot be used"),
        "that is a list": ([4], ""),
        "with a value of a wrong type": ({"quant_method": "gptq", "bits": "x"}, "quant_method 'gptq' cannot be used"),
    }
    cases = [
        case
        for name, (value, message) in said.items()
        for case in loading_cases(
            f"a quantization {name}",
            lambda model, v=value: edit_json(model / "config.json", quantization_config=v),
            message,
        )
    ]
    return first_for_others(cases)


def _generation_cases() -> list[Case]:
    said = {
        "cut": ("{", " is not valid JSON"),
        "that is a list": ("[]", ": expected a mapping"),
        "that is a string": ('"x"', ": expected a mapping"),
        "that is null": ("null", ": expected a mapping"),
        "with a value of a wrong type": ('{"watermarking_config": 5}', " cannot be used"),
    }
    name = "generation_config.json"
    cases = [
        case
        for words, (text, message) in said.items()
        for case in loading_cases(f"a {name} {words}", partial(_text, name, text), f"{name}{message}")
    ]
    return first_for_others(cases)


def _convert_cases() -> list[Case]:
    def index(name: str, work: Path, inputs: Inputs) -> list[str]:
        model = Path(shutil.copytree(inputs.families["bloom"], work / "model"))
        shutil.move(model / "model.safetensors", work.parent / "secret.safetensors")
        _index({"weight_map": {"transformer.ln_f.weight": name}}, model)
        return ["--model", str(model), "--output-dir", str(work / "out")]

    hostile = [*NAMES, "../../secret.safetensors "]
    cases = [Case(f"BLOOM whose shard is {n!r}", "convert", partial(index, n), "names") for n in hostile]

    def pickled(work: Path, inputs: Inputs) -> list[str]:
        arguments = index("../../secret.safetensors", work, inputs)
        shutil.move(work / "model" / INDEX, work / "model" / "pytorch_model.bin.index.json")
        return [*arguments, "--allow-pickle"]

    return [
        *cases,
        Case("pickled BLOOM whose shard is elsewhere", "convert", pickled, "which is not a file in its folder"),
    ]


def _resume_cases() -> list[Case]:
    def resumed(name: str, content: Any, work: Path, inputs: Inputs) -> list[str]:
        checkpoint = work / "run" / "checkpoint-1"
        shutil.copytree(inputs.sharded, checkpoint)
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 1}), encoding="utf-8")
        edit_json(checkpoint / INDEX, **content)
        shutil.move(checkpoint / INDEX, checkpoint / name)
        return config_file(work, experiment(work, inputs))

    contents = {
        "shards elsewhere": {"a": "../../../secret.safetensors"},
        "no map": [1],
        "absolute shards": {"a": "/x"},
    }
    return [
        Case(f"a checkpoint with {what} in {name}", "train", partial(resumed, name, {"weight_map": weight_map}), name)
        for name in (INDEX, "pytorch_model.bin.index.json")
        for what, weight_map in contents.items()
    ]


@parametrized(_index_cases() + _convert_cases() + _resume_cases())
def test_index(case: Case, tmp_path: Path, inputs: Inputs, capfd: pytest.CaptureFixture[str]) -> None:
    refused(case, tmp_path, inputs, capfd)


@parametrized(_weight_cases())
def test_weights(case: Case, tmp_path: Path, inputs: Inputs, capfd: pytest.CaptureFixture[str]) -> None:
    refused(case, tmp_path, inputs, capfd)


@parametrized(_vocabulary_cases() + _quantization_cases())
def test_silent_changes(case: Case, tmp_path: Path, inputs: Inputs, capfd: pytest.CaptureFixture[str]) -> None:
    refused(case, tmp_path, inputs, capfd)


@parametrized(_tokenizer_cases() + _generation_cases())
def test_companions(case: Case, tmp_path: Path, inputs: Inputs, capfd: pytest.CaptureFixture[str]) -> None:
    refused(case, tmp_path, inputs, capfd)
