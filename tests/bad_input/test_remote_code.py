"""Code that a checkpoint brings: no command runs it, whatever is piped to it, unless the command line says so."""

import ast
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils
import typer
from transformers import GPT2Config, GPT2LMHeadModel

from alibi_gpt_cli.main import app
from modeling_alibi_gpt.checkpoints.hub import ExportConfig, export_to_hub
from modeling_alibi_gpt.data.tokenizer_files import load_tokenizer
from modeling_alibi_gpt.runtime.manifest import write_manifest
from modeling_alibi_gpt.runtime.remote_code import FLAG, load_failure
from tests.bad_input.loading import LOADING
from tests.bad_input.refusals import SCRIPTS, Inputs, config_file, edit_json, experiment, script


ROOT = SCRIPTS.parent
REFUSAL = (
    "it contains Python code, which is not run by default; read that code, and if you trust it, add "
    "--trust-remote-code"
)
TRUSTING = ("train", "evaluate", "extrapolate", "generate")
# Whatever can run code that it loads, by the keyword that says whether it may.
LOADERS = {
    **dict.fromkeys(("from_pretrained", "from_config", "pipeline", "load_dataset"), "trust_remote_code"),
    "load": "weights_only",  # of torch
}
CONFIG_CODE = """
from transformers import GPT2Config

open({ran!r}, "a").close()


class ForeignConfig(GPT2Config):
    model_type = "foreign"
"""
MODEL_CODE = """
from transformers import GPT2LMHeadModel

from .configuration_foreign import ForeignConfig


class ForeignForCausalLM(GPT2LMHeadModel):
    config_class = ForeignConfig
"""
TOKENIZER_CODE = """
from transformers import PreTrainedTokenizerFast

open({ran!r}, "a").close()


class ForeignTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file that foreign code writes as soon as it is imported."""
    return tmp_path / "ran"


@pytest.fixture
def foreign(tmp_path: Path, inputs: Inputs, ran: Path) -> Path:
    """A GPT-2 that says it is a model of its own, with the code of config and model."""
    folder = tmp_path / "foreign"
    config = GPT2Config(vocab_size=264, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    load_tokenizer(inputs.checkpoint).save_pretrained(folder)
    (folder / "configuration_foreign.py").write_text(CONFIG_CODE.format(ran=str(ran)), encoding="utf-8")
    (folder / "modeling_foreign.py").write_text(MODEL_CODE, encoding="utf-8")
    names = {
        "AutoConfig": "configuration_foreign.ForeignConfig",
        "AutoModelForCausalLM": "modeling_foreign.ForeignForCausalLM",
    }
    edit_json(folder / "config.json", model_type="foreign", architectures=["ForeignForCausalLM"], auto_map=names)
    return folder


@pytest.fixture
def foreign_tokenizer(tmp_path: Path, inputs: Inputs, ran: Path) -> Path:
    """An AlibiGPT whose tokenizer is code."""
    folder = Path(shutil.copytree(inputs.checkpoint, tmp_path / "foreign_tokenizer"))
    (folder / "tokenization_foreign.py").write_text(TOKENIZER_CODE.format(ran=str(ran)), encoding="utf-8")
    names = {"AutoTokenizer": [None, "tokenization_foreign.ForeignTokenizer"]}
    edit_json(folder / "tokenizer_config.json", tokenizer_class="ForeignTokenizer", auto_map=names)
    return folder


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where transformers puts foreign code before it runs it."""
    folder = tmp_path / "modules"
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
    path = list(sys.path)
    yield folder
    sys.path[:] = path
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def piped_yes(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    answers = io.StringIO("y\n" * 10)
    monkeypatch.setattr(sys, "stdin", answers)
    return answers


@pytest.mark.parametrize("command", LOADING)
@pytest.mark.parametrize("kind", ["foreign", "foreign_tokenizer"])
def test_no_command_runs_it(
    command: str,
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    inputs: Inputs,
    ran: Path,
    modules: Path,
    piped_yes: io.StringIO,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if kind == "foreign_tokenizer" and command in ("to_bloom", "to_mpt"):
        pytest.skip("neither loads the tokenizer")
    name, arguments = LOADING[command]
    work = tmp_path / "work"
    work.mkdir()
    line = arguments(request.getfixturevalue(kind), work, inputs)
    capfd.readouterr()
    code = script(name).main(line)
    printed = capfd.readouterr()
    assert (code, len(printed.err.splitlines())) == (2, 1), printed.err
    assert piped_yes.tell() == 0, "a question was asked"
    assert not ran.exists() and not modules.exists()
    if command in (*TRUSTING, "compare", "sweep_beta"):
        assert REFUSAL in printed.err


def test_the_refusal_names_every_command_that_has_the_flag() -> None:
    commands = typer.main.get_command(app).commands
    having = {
        name
        for name, command in commands.items()
        if FLAG in [word for option in command.params for word in option.opts]
    }
    assert set(re.findall(r"[a-z]+", load_failure(ValueError("set trust_remote_code=True")).partition(FLAG)[2])) == {
        *having,
        *("to", "or"),
    }


def test_a_process_that_is_piped_a_yes_runs_nothing(foreign: Path, inputs: Inputs, ran: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "evaluate.py"), "--model", str(foreign), "--data", inputs.source]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(command, input="y\ny\n", env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ") and REFUSAL in line
    assert not ran.exists()


@pytest.mark.parametrize("command", TRUSTING)
@pytest.mark.parametrize("kind", ["foreign", "foreign_tokenizer"])
def test_the_flag_runs_it(
    command: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path, inputs: Inputs, ran: Path, modules: Path
) -> None:
    name, arguments = LOADING[command]
    line = arguments(request.getfixturevalue(kind), tmp_path, inputs)
    line += {"evaluate": ["--set", "length_tokens=16"], "generate": ["--set", "max_new_tokens=4"]}.get(command, [])
    assert script(name).main([*line, "--trust-remote-code"]) == 0
    assert ran.exists()


@pytest.mark.parametrize("place", ["", "model__", "training__", "data__"])
def test_no_settings_file_turns_it_on(
    place: str, foreign: Path, tmp_path: Path, inputs: Inputs, ran: Path, modules: Path, capsys
) -> None:
    values = experiment(tmp_path, inputs, model={"checkpoint": str(foreign)}, **{f"{place}trust_remote_code": True})
    assert script("train").main(config_file(tmp_path, values)) == 2
    assert "trust_remote_code" in capsys.readouterr().err and not ran.exists()
    for name in ("evaluate", "extrapolate", "generate"):
        assert script(name).main(["--set", "trust_remote_code=true"]) == 2
        assert "unknown key 'trust_remote_code'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [*TRUSTING, "compare", "sweep_beta"])
def test_no_settings_file_names_an_attention_on_the_hub(
    command: str, tmp_path: Path, inputs: Inputs, capsys: pytest.CaptureFixture[str]
) -> None:
    name, arguments = LOADING[command]
    prefix = {"train": "model.", "compare": "experiment.model."}.get(command, "")
    line = [*arguments(inputs.checkpoint, tmp_path, inputs), "--set", f"{prefix}attn_implementation=evil/kernel"]
    assert script(name).main(line) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and "'evil/kernel'" in said
    assert "names code on the Hub" in said or "attn_implementation must be one of" in said


@pytest.mark.parametrize("command", TRUSTING)
def test_an_export_of_ours_needs_neither_the_flag_nor_its_own_code(
    command: str, tmp_path: Path, inputs: Inputs, modules: Path
) -> None:
    exported = tmp_path / "exported"
    export_to_hub(ExportConfig(model=str(inputs.checkpoint), output_dir=str(exported)))
    assert "AutoConfig" in json.loads((exported / "config.json").read_text(encoding="utf-8"))["auto_map"]
    name, arguments = LOADING[command]
    assert script(name).main(arguments(exported, tmp_path, inputs)) == 0
    assert not modules.exists()


class Evil:
    """What runs code as soon as it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.ran), "w")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_run_that_goes_on_unpickles_no_code(name: str, tmp_path: Path, inputs: Inputs, ran: Path) -> None:
    values = experiment(tmp_path, inputs, training__save_steps=1, training__logging_steps=1)
    assert script("train").main(config_file(tmp_path, values)) == 0
    (tmp_path / "run" / "training.jsonl").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")  # from its last step, a run would read no random state
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        torch.save(Evil(ran), checkpoint / name)
        write_manifest(checkpoint)  # whoever plants code makes the checksums agree
    with suppress(pickle.UnpicklingError):
        assert script("train").main(config_file(tmp_path, values)) in (0, 2)
    assert not ran.exists()
    torch.save(Evil(ran), tmp_path / name)
    torch.load(tmp_path / name, weights_only=False)
    assert ran.exists(), "it is what it is taken for"


def test_every_load_says_whether_code_may_run() -> None:
    """An argument left out is a question on the terminal. Only those that the flag is for may say anything but no."""
    num_calls, faults = 0, []
    for path in [*(ROOT / "modeling_alibi_gpt").rglob("*.py"), *SCRIPTS.glob("*.py"), *ROOT.glob("benchmarks/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or (keyword := LOADERS.get(_called(node))) is None:
                continue
            num_calls += 1
            said = [ast.unparse(argument.value) for argument in node.keywords if argument.arg == keyword]
            allowed = ["True"] if keyword == "weights_only" else ["False", "is_remote_code_trusted()"]
            if len(said) != 1 or said[0] not in allowed:
                faults.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert faults == [] and num_calls > 10


def test_nothing_is_unpickled_or_evaluated() -> None:
    runs_code = {"eval", "exec", "compile", "__import__", "unsafe_load", "full_load"}
    for path in [*(ROOT / "modeling_alibi_gpt").rglob("*.py"), *SCRIPTS.glob("*.py"), *ROOT.glob("benchmarks/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _called(node) in runs_code:
                is_method = isinstance(node.func, ast.Attribute)
                owner = ast.unparse(node.func.value) if is_method else "builtins"
                assert owner not in ("builtins", "yaml"), f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] in ("pickle", "joblib", "dill"):
                raise AssertionError(f"{path}:{node.lineno} unpickles")


def _called(node: ast.Call) -> str:
    """The last name of what is called; ``load`` is that of torch alone, for many things have one."""
    name = ast.unparse(node.func)
    last = name.rpartition(".")[2]
    return "" if last == "load" and name != "torch.load" else last
