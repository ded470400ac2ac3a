"""The command line as a whole: its commands, their help without torch, and what it says of words it does not know."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from alibi_gpt_cli import console
from alibi_gpt_cli.main import app, main, repeated_options, run


ROOT = Path(__file__).parents[2]
COMMANDS = (
    *("train", "evaluate", "extrapolate", "context", "recall", "compare", "sweep", "convert"),
    *("export", "generate", "report", "screen", "benchmark", "serve", "explore", "init"),
)
HEAVY = ("torch", "transformers", "datasets", "modeling_alibi_gpt")
HELP_IN_A_PROCESS = """
import json, sys
from alibi_gpt_cli.main import main
codes = [main(words) for words in json.loads(sys.argv[1])]
print(json.dumps([codes, sorted({name.split(".")[0] for name in sys.modules})]))
"""


def test_help_and_version_load_neither_torch_nor_transformers() -> None:
    """These take seconds; the time itself depends on the machine."""
    lines = [["--help"], ["--version"], [], *([name, "--help"] for name in COMMANDS)]
    command = [sys.executable, "-c", HELP_IN_A_PROCESS, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    codes, modules = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0] * len(lines)
    assert not set(HEAVY) & set(modules) and "typer" in modules
    for name in COMMANDS:
        assert f"Usage: alibi-gpt {name} " in done.stdout
    assert f"alibi-gpt {metadata.version('alibi-gpt')}\n" in done.stdout


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    named = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("│ ")]
    assert [name for name in named if name in COMMANDS] == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_shows_every_word_of_its_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Typer takes words in brackets for markup, and shows nothing."""
    text = next(command.callback.__doc__ for command in app.registered_commands if command.callback.__name__ == name)
    assert main([name, "--help"]) == 0
    assert " ".join(text.split()) in " ".join(capsys.readouterr().out.split())


def test_a_terminal_that_cannot_show_a_letter_gets_its_number(tmp_path: Path) -> None:
    """As on Windows, where output to a file has few letters: a finished command must not fail while it prints β."""
    command = [sys.executable, "-m", "alibi_gpt_cli", "init", str(tmp_path / "β")]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"}, check=True)
    assert b"\\u03b2" in done.stdout and done.stderr == b""


def test_the_wheel_installs_the_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata.EntryPoint("alibi-gpt", project["scripts"]["alibi-gpt"], "console_scripts").load() is main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "error: No such command 'trian'. Did you mean 'train'?"),
        (["train"], "error: Missing option '--config'."),
        (["train", "--config"], "error: Option '--config' requires an argument."),
        (["generate", "--promt", "x"], "error: No such option: --promt"),
        (
            ["extrapolate", "--lengths", "16", "x"],
            "error: Invalid value for '--lengths': Input should be",
        ),
        (["extrapolate", "--models"], "error: Option '--models' requires an argument."),
        (["extrapolate", "runs/alibi"], "error: Got unexpected extra argument(s) (runs/alibi)"),
    ],
)
def test_words_it_does_not_take_are_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith(message)


def test_an_option_takes_several_words() -> None:
    words = ["extrapolate", "--models", "a", "b", "--data", "stdlib", "--lengths", "8", "--set", "x=[1, 2]", "--json"]
    expected = ["--models", "a", "--models", "b", "--data", "stdlib", "--lengths", "8", "--set", "x=[1, 2]", "--json"]
    assert repeated_options(words) == ["extrapolate", *expected]
    words = ["recall", "--models", "a", "b", "--lengths", "8", "16"]
    assert repeated_options(words)[1:] == ["--models", "a", "--models", "b", "--lengths", "8", "--lengths", "16"]
    assert repeated_options(["context", "--models", "a", "b"]) == ["context", "--models", "a", "--models", "b"]
    assert repeated_options(["report", "--records", "a", "b"]) == ["report", "--records", "a", "--records", "b"]
    for untouched in ([], ["train"], ["serve", "--models", "a", "b"], ["extrapolate", "--data", "a", "b"]):
        assert repeated_options(untouched) == untouched


def test_an_interrupted_command_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_alibi_gpt.runtime.config.load_config", interrupt)
    assert run("generate", ["--model", "x"]) == console.INTERRUPTED_EXIT_CODE
    assert capsys.readouterr().err == "interrupted\n"


def test_serve_without_its_packages_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    assert main(["serve", "folder"]) == 2
    assert "pip install 'alibi-gpt[serve]'" in capsys.readouterr().err


def test_benchmarks_outside_a_checkout_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wheel has the command and not the benchmarks."""
    module = importlib.import_module("alibi_gpt_cli.benchmark")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "alibi_gpt_cli" / "benchmark.py"))
    assert main(["benchmark", "--output", str(tmp_path / "records.jsonl")]) == 2
    error = capsys.readouterr().err
    assert "benchmarks come with the repository" in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())
