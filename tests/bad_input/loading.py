"""The commands that load a checkpoint folder, each by its command line for one."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bad_input.refusals import Case, Inputs, config_file, experiment


Spoil = Callable[[Path], None]


def _train(model: Path, work: Path, inputs: Inputs) -> list[str]:
    return config_file(work, experiment(work, inputs, model={"checkpoint": str(model)}))


def _compare(model: Path, work: Path, inputs: Inputs) -> list[str]:
    comparison = {
        "name": "c",
        "experiment": experiment(work, inputs, model={"checkpoint": str(model)}),
        "variants": {"a": {}},
        "reference": "a",
        "seeds": [0],
        "evaluation": {"source": inputs.source, "lengths_tokens": [8], "max_tokens": 64},
        "output_dir": str(work / "out"),
    }
    return config_file(work, comparison)


def _sweep(model: Path, work: Path, inputs: Inputs) -> list[str]:
    sweep = {"mode": "posthoc", "checkpoint": str(model), "source": inputs.source, "output_dir": str(work / "out")}
    return config_file(work, sweep | {"betas": [1.0]})


def _convert(family: str) -> Callable[[Path, Path, Inputs], list[str]]:
    return lambda model, work, _: ["--model", str(model), "--output-dir", str(work / "out"), "--to", family]


LOADING: dict[str, tuple[str, Callable[[Path, Path, Inputs], list[str]]]] = {
    "train": ("train", _train),
    "compare": ("compare", _compare),
    "sweep_beta": ("sweep_beta", _sweep),
    "evaluate": ("evaluate", lambda model, work, inputs: ["--model", str(model), "--data", inputs.source]),
    "extrapolate": (
        "extrapolate",
        lambda model, work, inputs: [
            *("--models", str(model), "--data", inputs.source, "--lengths", "8", "--output", str(work / "out.jsonl"))
        ],
    ),
    "generate": ("generate", lambda model, work, _: ["--model", str(model), "--prompt", "word"]),
    "export_to_hub": ("export_to_hub", lambda model, work, _: ["--model", str(model), "--output-dir", f"{work}/out"]),
    "to_bloom": ("convert", _convert("bloom")),
    "to_mpt": ("convert", _convert("mpt")),
    "to_gguf": ("convert", _convert("gguf")),
}


IN_FULL = ("evaluate", "to_bloom")


def first_for_others(cases: Sequence[Case], num_inputs: int = 2) -> list[Case]:
    """All of some inputs for two commands, and the first ones for the others.

    Every command loads a checkpoint folder with ``load_model_config``, which finds what is wrong with it; the others
    show that they pass on what it says.
    """
    kept, num_kept = [], Counter[str]()
    for case in cases:
        command = str(case).rpartition("(")[2].rstrip(")")
        if command in IN_FULL or num_kept[command] < num_inputs:
            kept.append(case)
            num_kept[command] += 1
    return kept


def loading_cases(name: str, spoil: Spoil, message: str, *, sharded: bool = False) -> list[Case]:
    """A spoilt copy of a checkpoint for every command that loads one."""

    def arguments_of(make: Callable[[Path, Path, Inputs], list[str]]) -> Callable[[Path, Inputs], list[str]]:
        def arguments(work: Path, inputs: Inputs) -> list[str]:
            model = Path(shutil.copytree(inputs.sharded if sharded else inputs.checkpoint, work / "model"))
            spoil(model)
            return make(model, work, inputs)

        return arguments

    return [
        Case(f"{name} ({command})", script, arguments_of(make), message) for command, (script, make) in LOADING.items()
    ]
