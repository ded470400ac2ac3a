"""A bad input, the command that gets it, and what a refusal is."""

import importlib.util
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml


SCRIPTS = Path(__file__).parents[2] / "scripts"
MAX_SECONDS = 2.0  # beyond imports, of this process's own time, which other processes do not lengthen
HANG_SECONDS = 60


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        name: What is bad, for the test's name.
        script: The command, a file of ``scripts/``.
        arguments: Makes the bad input in an empty folder and returns the command line.
        message: A part of the refusal.
    """

    name: str
    script: str
    arguments: Callable[[Path, "Inputs"], list[str]]
    message: str

    def __str__(self) -> str:
        return f"{self.script}: {self.name}"


@dataclass(frozen=True)
class Inputs:
    """Good inputs, to be copied and spoilt.

    Attributes:
        source: URI of a text.
        checkpoint: AlibiGPT in one file, with its tokenizer.
        sharded: The same in several.
        families: Folder by family that is converted.
    """

    source: str
    checkpoint: Path
    sharded: Path
    families: dict[str, Path]


def refused(case: Case, folder: Path, inputs: Inputs, capfd: pytest.CaptureFixture[str]) -> None:
    """Run a case and hold it to one line, exit code 2, two seconds and nothing left behind."""
    work = folder / "deep" / "work"
    work.mkdir(parents=True)
    arguments = case.arguments(work, inputs)
    before = _tree(folder)
    capfd.readouterr()
    start = time.process_time()
    with _no_longer_than(HANG_SECONDS):
        code = script(case.script).main(arguments)
    seconds = time.process_time() - start
    printed = capfd.readouterr()
    assert code == 2, f"exit code {code}: {printed.out}{printed.err}"
    assert len(printed.err.splitlines()) == 1, printed.err
    line = printed.err.rstrip()
    assert line.startswith("error: ") and case.message in line, line
    assert len(line) < 1100
    assert _tree(folder) == before
    assert seconds < MAX_SECONDS, f"{seconds:.1f} s"


def experiment(folder: Path, inputs: Inputs, **changes: Any) -> dict[str, Any]:
    """A tiny experiment; ``training__max_steps=1`` changes a key of a section."""
    values: dict[str, Any] = {
        "name": "tiny",
        "model": {"config": {"vocab_size": 264, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}},
        "data": {"source": inputs.source, "train_length_tokens": 16, "cache_dir": str(folder / "cache")},
        "global_batch_size": 4,
        "training": {"output_dir": str(folder / "run"), "max_steps": 2, "use_cpu": True, "disable_tqdm": True},
    }
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        inner = values
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = value
    return values


def config_file(folder: Path, values: dict[str, Any] | str) -> list[str]:
    """The command line of a settings file, from its values or its text."""
    path = folder / "settings.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return ["--config", str(path)]


def edit_json(path: Path, **changes: Any) -> None:
    """Lay fields over those of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@cache
def script(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"bad_input_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parametrized(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """``case``, with names that tell the cases apart."""
    names = [str(case) for case in cases]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    return pytest.mark.parametrize("case", cases, ids=names)


def _tree(folder: Path) -> list[tuple[str, int]]:
    """Every path; of files, when they were written too."""
    return sorted((str(path), path.lstat().st_mtime_ns if path.is_file() else 0) for path in folder.rglob("*"))


@contextmanager
def _no_longer_than(seconds: int) -> Iterator[None]:
    def give_up(*_: Any) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
