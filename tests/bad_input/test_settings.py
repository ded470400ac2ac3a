"""Settings that are no settings: text that explodes, nests or asks for other types, and values out of range."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.bad_input.loading import first_for_others, loading_cases
from tests.bad_input.refusals import SCRIPTS, Case, Inputs, config_file, experiment, parametrized, refused


# One downloads texts and reads no settings.
COMMANDS = sorted({path.stem for path in SCRIPTS.glob("*.py")} - {"download_gutenberg"})
READER = "evaluate"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS: dict[str, tuple[str, str]] = {
    "aliases that explode": (LAUGHS, "counting expanded aliases"),
    "merges that explode": (LAUGHS.replace("[", "{<<: [").replace("]", "]}").replace("x", "{y: 1}"), "expanded"),
    "an alias of itself": ("a: &a [*a]", "an alias refers to a value that contains it"),
    "lists nested deep": (f"a: {'[' * 5000}", "nested more than 32 deep"),
    "mappings nested deep": (f"a: {'{b: ' * 5000}", "nested more than 32 deep"),
    "blocks nested deep": ("- " * 5000, "nested more than 32 deep"),
    "keys nested deep": ("? " * 5000, "nested more than 32 deep"),
    "a number as a key": ("1: x", "key 1 is not a string"),
    "a truth as a key": ("true: x", "key true is not a string"),
    "nothing as a key": ("null: x", "key null is not a string"),
    "a list as a key": ("[a, b]: x", "key of type sequence is not a string"),
    "a mapping as a key": ("{a: b}: x", "key of type mapping is not a string"),
    "a key that stands twice": ("name: a\nname: b", "key 'name' occurs twice"),
    "a Python object": ("a: !!python/object/apply:os.system [ls]", "python/object/apply:os.system is not allowed"),
    "bytes": ("a: !!binary aGk=", "expected plain values without tags"),
    "a set": ("a: !!set {b, c}", "expected plain values without tags"),
    "a number that is none": ("a: !!int x", "expected plain values without tags"),
    "a number of 5000 digits": (f"a: {'9' * 5000}", "digits"),
    "two documents": ("--- a\n--- b", "another document"),
    "a control character": ("a: \x00", "special characters"),
    "no mapping": ("- a", "expected a mapping"),
    "nothing": ("", "expected a mapping"),
    "too many bytes": ("a: x\n" + "# padding\n" * 7000, "expected at most 65,536 of YAML"),
    "an open bracket": ("a: [1, 2", "is not valid YAML"),
    "a tab": ("\ta: 1", "is not valid YAML"),
}
JSON_TEXTS: dict[str, tuple[str, str]] = {
    "nested deep": ("[" * 100_000, "nested more than 32 deep"),
    "objects nested deep": ('{"a": ' * 50 + "1" + "}" * 50, "nested more than 32 deep"),
    "cut": ('{"name": ', "is not valid JSON"),
    "no object": ("[1]", "expected a mapping"),
}
CONFIG_JSONS: dict[str, tuple[str, str]] = {
    "nested deep": ("[" * 100_000, "nested more than 32 deep"),
    "objects nested deep": ('{"model_type": ' + '{"a": ' * 50 + "1" + "}" * 51, "nested more than 32 deep"),
    "a list": ("[1]", "expected a mapping"),
    "cut": ('{"model_type": ', "is not valid JSON"),
    "empty": ("", "is not valid JSON"),
}
# Fields of a model, each where it can be said: in overrides, in the config, in a checkpoint's config.json.
FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown activation": ({"hidden_act": "gelo"}, "hidden_act 'gelo' is unknown to transformers"),
    "NaN initializer": ({"initializer_range": float("nan")}, "initializer_range must be a finite number"),
    "infinite initializer": ({"initializer_range": float("inf")}, "initializer_range must be a finite number"),
    "no theta": ({"rope_theta": 0}, "rope_theta must be a finite number above 1"),
    "negative theta": ({"rope_theta": -10000.0}, "rope_theta must be a finite number above 1"),
    "NaN theta": ({"rope_theta": float("nan"), "position_method": "rope"}, "rope_theta must be a finite number"),
    "NaN epsilon": ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon must be a finite number"),
    "negative beta": ({"alibi_beta": -1.0}, "beta must be a finite number above 0"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
    "words for layers": ({"num_hidden_layers": "two"}, "num_hidden_layers"),
    "unknown method": ({"position_method": "hope"}, "position_method must be one of"),
}
NOT_FIELDS = {"model_type": "gpt2", "auto_map": {"AutoConfig": "x.Y"}, "dtype": "float16", "architectures": ["X"]}


def _text(suffix: str, text: str, work: Path, _: Inputs) -> list[str]:
    path = work / f"settings.{suffix}"
    path.write_text(text, encoding="utf-8")
    return ["--config", str(path)]


def _changed(changes: dict[str, Any], work: Path, inputs: Inputs) -> list[str]:
    return config_file(work, experiment(work, inputs, **changes))


def _readings(fields: dict[str, Any], work: Path, inputs: Inputs) -> list[str]:
    values = {"variants": {"a": {}}, "reference": "a", "seeds": [0], "output_dir": str(work / "out"), "name": "c"}
    values |= {"experiment": experiment(work, inputs), "evaluation": {"source": inputs.source}}
    return config_file(work, values | {"inference_overrides": {"a": {"b": fields}}})


def _overrides(script: str, fields: dict[str, Any], work: Path, inputs: Inputs) -> list[str]:
    model = str(inputs.checkpoint)
    if script == "extrapolate":
        return config_file(work, {"models": [model], "source": inputs.source, "overrides": fields})
    model = str(inputs.families["bloom"])
    return config_file(work, {"model": model, "output_dir": str(work / "out"), "overrides": fields})


def _spoilt_config(text: str | dict[str, Any], model: Path) -> None:
    path = model / "config.json"
    if isinstance(text, dict):
        text = json.dumps(json.loads(path.read_text(encoding="utf-8")) | text)
    path.write_text(text, encoding="utf-8")


def _text_cases() -> list[Case]:
    """All for one command, and the first for the others: every command reads its settings with ``load_config``."""
    first, (laughs, message) = next(iter(TEXTS.items()))
    cases = [Case(first, script, partial(_text, "yaml", laughs), message) for script in COMMANDS if script != READER]
    cases += [Case(name, READER, partial(_text, "yaml", text), message) for name, (text, message) in TEXTS.items()]
    cases += [
        Case(f"JSON {name}", READER, partial(_text, "json", text), message)
        for name, (text, message) in JSON_TEXTS.items()
    ]
    settings: dict[str, tuple[str, str]] = {
        "deep key": (f"{'a.' * 5000}b=1", "deep, expected at most 32"),
        "deep value": (f"name={'[' * 5000}", "nested more than 32 deep"),
        "number as key": ("name={1: 2}", "key 1 is not a string"),
        "no value": ("name", "--set expects KEY=VALUE"),
    }
    for name, (setting, message) in settings.items():
        cases.append(Case(f"--set {name}", READER, partial(_set, setting), message))
    return cases


def _set(setting: str, work: Path, _: Inputs) -> list[str]:
    return [*_text("yaml", "{}", work, _), "--set", setting]


def _model_cases() -> list[Case]:
    cases: list[Case] = []
    in_files: list[Case] = []
    for name, (fields, message) in FIELDS.items():
        places: dict[str, Callable[[Path, Inputs], list[str]]] = {
            "overrides": partial(_changed, {"model__overrides": fields}),
            "config": partial(_changed, {f"model__config__{key}": value for key, value in fields.items()}),
        }
        cases += [Case(f"{name} in {place}", "train", arguments, message) for place, arguments in places.items()]
        cases.append(Case(f"{name} in a reading", "compare", partial(_readings, fields), message))
        cases += [
            Case(f"{name} in overrides", script, partial(_overrides, script, fields), message)
            for script in ("extrapolate", "convert")
            if name not in ("no layers", "words for layers") or script == "extrapolate"
        ]
        in_files += loading_cases(f"{name} in config.json", partial(_spoilt_config, fields), message)
    for key, value in NOT_FIELDS.items():
        message = f"unknown key '{{}}{key}'"
        fields = {key: value}
        cases.append(
            Case(
                f"{key} in overrides",
                "train",
                partial(_changed, {"model__overrides": fields}),
                message.format("model.overrides."),
            )
        )
        cases.append(
            Case(f"{key} in a reading", "compare", partial(_readings, fields), message.format("model.overrides."))
        )
        for script in ("extrapolate", "convert"):
            cases.append(
                Case(f"{key} in overrides", script, partial(_overrides, script, fields), message.format("overrides."))
            )
    texts: list[Case] = []
    for name, (text, message) in CONFIG_JSONS.items():
        texts += loading_cases(f"config.json {name}", partial(_spoilt_config, text), message)
    return [*cases, *first_for_others(in_files, 1), *first_for_others(texts, 1)]


@parametrized(_text_cases())
def test_text(case: Case, tmp_path: Path, inputs: Inputs, capfd: pytest.CaptureFixture[str]) -> None:
    refused(case, tmp_path, inputs, capfd)


@parametrized(_model_cases())
def test_model(case: Case, tmp_path: Path, inputs: Inputs, capfd: pytest.CaptureFixture[str]) -> None:
    refused(case, tmp_path, inputs, capfd)
