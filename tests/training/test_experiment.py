"""Configuration files: what is read is what was meant; anything else is refused with a word on what would be right."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from modeling_alibi_gpt.runtime.config import build_config, load_config
from modeling_alibi_gpt.runtime.parsing import read_mapping
from modeling_alibi_gpt.training.experiment import ExperimentConfig


VALUES: dict[str, Any] = {
    "name": "tiny",
    "model": {"config": {"hidden_size": 16}},
    "data": {"source": "text:/data/*.txt", "train_length_tokens": 32},
    "training": {"output_dir": "runs/tiny", "learning_rate": 3.0e-4},
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(VALUES), encoding="utf-8")
    return str(path)


def test_a_file_becomes_an_experiment_with_defaults(path: str) -> None:
    config = load_config(ExperimentConfig, path)
    assert config.model.config == {"hidden_size": 16}
    assert config.data.train_length_tokens == 32
    assert (config.precision, config.data.validation_fraction, config.global_batch_size) == ("float32", 0.1, None)


def test_an_experiment_survives_json(path: str, tmp_path: Path) -> None:
    # As the best.json of a sweep is written; the name needs an escape that YAML reads otherwise.
    config = load_config(ExperimentConfig, path, ["name='\U0001f600'"])
    best = tmp_path / "best.json"
    best.write_text(json.dumps(dataclasses.asdict(config), indent=2), encoding="utf-8")
    assert load_config(ExperimentConfig, str(best)) == config


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.e-4", "3.0e-4", "+3e-04", "0.0003"])
def test_numbers_are_read_as_everybody_means_them(path: str, text: str) -> None:
    for config in (
        load_config(ExperimentConfig, path, [f"training.learning_rate={text}"]),
        load_config(ExperimentConfig, _copy_with(path, f"training: {{output_dir: x, learning_rate: {text}}}")),
    ):
        assert config.training["learning_rate"] == 3e-4


def _copy_with(path: str, line: str) -> str:
    other = Path(path).with_name("other.yaml")
    kept = {key: value for key, value in VALUES.items() if key != line.partition(":")[0]}
    other.write_text(yaml.safe_dump(kept) + line, encoding="utf-8")
    return str(other)


@pytest.mark.parametrize(
    ("text", "value"),
    [("no", "no"), ("on", "on"), ("true", True), ("False", False), ("null", None), ("", None), ("7", 7), ("1e3", 1e3)],
)
def test_values_are_those_of_yaml_but_no_is_a_word(path: str, text: str, value: Any) -> None:
    found = load_config(ExperimentConfig, path, [f"training.eval_strategy={text}"]).training["eval_strategy"]
    assert found == value and type(found) is type(value)


def test_settings_lie_over_named_values_and_these_over_the_file(path: str) -> None:
    settings = ["training.seed=1", "data.source=text:/o/*.gz", "model.overrides.alibi_slopes=[0.5, 0.25]", "name=c"]
    config = load_config(ExperimentConfig, path, settings, name="b", precision="bfloat16", global_batch_size=None)
    assert config.training == {**VALUES["training"], "seed": 1}
    assert config.data.source == "text:/o/*.gz"
    assert config.model.overrides == {"alibi_slopes": [0.5, 0.25]}
    assert (config.name, config.precision, config.global_batch_size) == ("c", "bfloat16", None)


def test_a_setting_changes_one_of_several_aliases(path: str) -> None:
    shared = "model: {config: {first: &a {b: {c: 1}}, second: *a}}"
    config = load_config(ExperimentConfig, _copy_with(path, shared), ["model.config.first.b.c=2"])
    assert config.model.config == {"first": {"b": {"c": 2}}, "second": {"b": {"c": 1}}}


def test_integers_pass_for_floats(path: str) -> None:
    rate = load_config(ExperimentConfig, path, ["position_learning_rate=2"]).position_learning_rate
    assert rate == 2.0 and type(rate) is float


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("nmae=x", "unknown key 'nmae'; did you mean 'name'?"),
        ("model.overides={}", "unknown key 'model.overides'; did you mean 'model.overrides'?"),
        ("data.train_length=64", "unknown key 'data.train_length'; did you mean 'data.train_length_tokens'?"),
        ("data.xyz=1", "unknown key 'data.xyz'; expected one of: cache_dir, isolate_documents, "),
        ("data.train_length_tokens=long", "'data.train_length_tokens' must be a valid integer, got 'long'"),
        ("data.train_length_tokens=64.0", "'data.train_length_tokens' must be a valid integer, got 64.0"),
        ("data.train_length_tokens=true", "'data.train_length_tokens' must be a valid integer, got True"),
        ("data.validation_fraction=true", "'data.validation_fraction' must be a valid number, got True"),
        ("data.validation_fraction=.nan", "'data.validation_fraction' must be a finite number, got nan"),
        ("data.max_train_tokens=many", r"'data.max_train_tokens' must be a valid integer, got 'many'"),
        ("data.isolate_documents=yes", "'data.isolate_documents' must be a valid boolean, got 'yes'"),
        ("model.config=[1]", r"'model.config' must be a valid string or a mapping, got \[1\]"),
        ("data=text:/x", "'data' must be a mapping, got 'text:/x'"),
        ("data.train_length_tokens=2", "must be at least 3, got 2"),
        ("data.validation_fraction=1", "'data.validation_fraction' must be below 1, got 1"),
        ("data.validation_fraction=0.0", "'data.validation_fraction' must be above 0, got 0.0"),
        ("position_learning_rate=0", "'position_learning_rate' must be above 0, got 0"),
        ("milestones={steps: [], lengths_tokens: [8]}", r"'milestones.steps' must be a list of at least 1, got \[\]"),
        ("milestones={steps: [-1], lengths_tokens: [8]}", r"'milestones.steps\[0\]' must be at least 0, got -1"),
        ("precision=float16", "'precision' must be 'float32', 'bfloat16' or 'auto', got 'float16'"),
        ("data.source=[text:a,text:b]", r"^'data.source\[0\]' must be a mapping, got 'text:a'$"),
        (
            'data.source=[{source: "text:a", weight: x}]',
            r"^'data.source\[0\].weight' must be a valid number, got 'x'$",
        ),
        ("training.output_dir=", "training.output_dir is missing"),
        ("model.checkpoint=x", "exactly one of 'config' .a new model. and 'checkpoint' .fine-tuning."),
        ("model.config=null", "exactly one of 'config'"),
        ("training.seed", "--set expects KEY=VALUE, got 'training.seed'"),
        ("name.first=x", "--set name.first=x: 'name' is a value, expected a mapping"),
        ("data.source=*.txt", r"--set data.source=\*.txt: the value is not valid YAML, try quoting it"),
    ],
)
def test_what_was_not_meant_is_refused(path: str, setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(ExperimentConfig, path, [setting])


@pytest.mark.parametrize("key", ["name", "model", "data", "training", "data.train_length_tokens"])
def test_a_missing_key_is_named(key: str) -> None:
    values = copy.deepcopy(VALUES)
    section, _, leaf = key.partition(".")
    if leaf:
        del values[section][leaf]
    else:
        del values[section]
    with pytest.raises(ValueError, match=f"^key '{key}' is missing$"):
        build_config(ExperimentConfig, values)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.yaml", b"a: [1", "is not valid YAML"),
        ("a.yaml", b"\xff\xfe", "is not valid YAML"),
        ("a.yaml", b"", "expected a mapping of keys to values, got NoneType"),
        ("a.yaml", b"- 1", "expected a mapping of keys to values, got list"),
        ("a.yaml", b"a: 1\nb: {c: 1, c: 2}", "key 'c' occurs twice"),
        ("a.json", b'{"a": 1', "is not valid JSON"),
        ("a.json", b"3", "expected a mapping of keys to values, got int"),
    ],
)
def test_files_that_are_no_mapping_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_mapping(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_mapping(tmp_path / name)
