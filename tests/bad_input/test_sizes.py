"""Sizes that no machine holds: in settings, in the config.json of a checkpoint, and of a folder to convert."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.bad_input.loading import loading_cases
from tests.bad_input.refusals import Case, Inputs, config_file, edit_json, experiment, parametrized, refused


SIZES: dict[str, dict[str, Any]] = {
    "layers": {"num_hidden_layers": 10**9},
    "heads": {"num_attention_heads": 10**9, "num_key_value_heads": 10**9, "head_dim": 8},
    "query heads": {"num_attention_heads": 10**9, "head_dim": 8, "num_key_value_heads": 1},
    "width": {"hidden_size": 10**7, "head_dim": 8},
    "mlp": {"intermediate_size": 10**12},
    "vocabulary": {"vocab_size": 10**12},
    "head": {"head_dim": 10**12},
    "everything": {"num_hidden_layers": 10**9, "vocab_size": 10**12, "intermediate_size": 10**12},
}
METHODS: dict[str, dict[str, Any]] = {
    "learned": {"position_method": "learned"},
    "shared_offset": {"position_method": "shared_offset"},
    "fire": {"position_method": "fire", "fire_hidden_size": 10**12},
    "t5 buckets": {"position_method": "t5", "t5_num_buckets": 10**12},
    "t5 distance": {"position_method": "t5", "t5_max_distance": 10**12},
    "sandwich": {"position_method": "sandwich", "sandwich_dim": 10**12},
}
MESSAGES = {"t5 buckets": "t5_max_distance must be", "t5 distance": "at most 1048576", "sandwich": "at most 65536"}
FOREIGN: dict[str, dict[str, dict[str, Any]]] = {
    "bloom": {
        "layers": {"n_layer": 10**9},
        "heads": {"n_head": 10**9},
        "width": {"hidden_size": 10**7},
        "vocabulary": {"vocab_size": 10**12},
    },
    "mpt": {
        "layers": {"n_layers": 10**9},
        "heads": {"n_heads": 10**9},
        "width": {"d_model": 10**7},
        "mlp": {"expansion_ratio": 10**12},
        "infinite mlp": {"expansion_ratio": float("inf")},
        "vocabulary": {"vocab_size": 10**12},
    },
    "gpt2": {
        "layers": {"n_layer": 10**9},
        "heads": {"n_head": 10**9},
        "width": {"n_embd": 10**7},
        "mlp": {"n_inner": 10**12},
        "vocabulary": {"vocab_size": 10**12},
        "positions": {"n_positions": 10**12},
    },
}


def _in_settings(fields: dict[str, Any], work: Path, inputs: Inputs) -> list[str]:
    return config_file(work, experiment(work, inputs, model__overrides=fields))


def _in_file(fields: dict[str, Any], work: Path, inputs: Inputs) -> list[str]:
    path = work / "config.json"
    shutil.copyfile(inputs.checkpoint / "config.json", path)
    edit_json(path, **fields)
    return config_file(work, experiment(work, inputs, model={"config": str(path)}))


def _in_sweep(fields: dict[str, Any], work: Path, inputs: Inputs) -> list[str]:
    values = experiment(work, inputs, model__overrides=fields)
    return config_file(
        work, {"mode": "retrain", "experiment": values, "output_dir": str(work / "out"), "betas": [1.0]}
    )


def _in_variants(fields: dict[str, Any], work: Path, inputs: Inputs) -> list[str]:
    values = {"variants": {"a": {}, "b": fields}, "reference": "a", "seeds": [0], "output_dir": str(work / "out")}
    values |= {"name": "c", "experiment": experiment(work, inputs), "evaluation": {"source": inputs.source}}
    return config_file(work, values)


def _batches(changes: dict[str, Any]) -> Callable[[Path, Inputs], list[str]]:
    return lambda work, inputs: config_file(work, experiment(work, inputs, **changes))


def _foreign(family: str, fields: dict[str, Any]) -> Callable[[Path, Inputs], list[str]]:
    def arguments(work: Path, inputs: Inputs) -> list[str]:
        model = Path(shutil.copytree(inputs.families[family], work / "model"))
        edit_json(model / "config.json", **fields)
        return ["--model", str(model), "--output-dir", str(work / "out")]

    return arguments


def _settings_cases() -> list[Case]:
    needs = "of memory, but only"
    cases = []
    for name, fields in SIZES.items():
        cases.append(Case(f"{name} in overrides", "train", partial(_in_settings, fields), needs))
        cases.append(Case(f"{name} in config.json", "train", partial(_in_file, fields), needs))
        cases.append(Case(f"{name} of every trial", "sweep_beta", partial(_in_sweep, fields), needs))
        cases.append(Case(f"{name} of a variant", "compare", partial(_in_variants, fields), needs))
    for name, fields in METHODS.items():
        # What trains at this length has a table of this length.
        settings = partial(_in_settings, {"train_context_length": 10**12, **fields})
        cases.append(Case(name, "train", settings, MESSAGES.get(name, needs)))
    batches = {
        "global batch": {"global_batch_size": 10**9},
        "device batch": {"global_batch_size": None, "training__per_device_train_batch_size": 10**9},
        "evaluation batch": {"training__per_device_eval_batch_size": 10**9, "training__eval_on_start": True},
        "length": {"data__train_length_tokens": 10**12},
    }
    cases += [Case(name, "train", _batches(changes), needs) for name, changes in batches.items()]
    return cases


def _checkpoint_cases() -> list[Case]:
    cases = []
    for name, fields in SIZES.items():
        spoil = partial(_edit_config, fields)
        cases += loading_cases(name, spoil, "its config requires")
    return cases


def _edit_config(fields: dict[str, Any], model: Path) -> None:
    edit_json(model / "config.json", **fields)


def _conversion_cases() -> list[Case]:
    return [
        Case(f"{family} {name}", "convert", _foreign(family, fields), "")
        for family, sizes in FOREIGN.items()
        for name, fields in sizes.items()
    ]


@parametrized(_settings_cases())
def test_in_settings(case: Case, tmp_path: Path, inputs: Inputs, capfd) -> None:
    refused(case, tmp_path, inputs, capfd)


@parametrized(_checkpoint_cases())
def test_in_a_checkpoint(case: Case, tmp_path: Path, inputs: Inputs, capfd) -> None:
    refused(case, tmp_path, inputs, capfd)


@parametrized(_conversion_cases())
def test_in_a_folder_to_convert(case: Case, tmp_path: Path, inputs: Inputs, capfd) -> None:
    refused(case, tmp_path, inputs, capfd)
