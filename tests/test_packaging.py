"""What an installation gets: the extras, the files of the wheel and of the source distribution, one version."""

import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from alibi_gpt_cli.console import EXTRA_OF_MODULE
from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.data.corpora import load_documents
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer


ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {name: {Requirement(line).name for line in lines} for name, lines in PROJECT["optional-dependencies"].items()}
# Makes packages unfindable, as where they are not installed, and runs the command line.
WITHOUT = """
import json, sys
from importlib.machinery import PathFinder

HIDDEN = set(json.loads(sys.argv[1]))

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
from alibi_gpt_cli.main import main
sys.exit(main(sys.argv[2:]))
"""
# Torch brings jinja2.
OF_EXTRAS = sorted(EXTRA_OF_MODULE.keys() - {"jinja2"})


def run_without(modules: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, json.dumps(modules), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_extra_of_a_module_brings_it() -> None:
    for module, extra in EXTRA_OF_MODULE.items():
        assert module in EXTRAS[extra]


def test_all_is_what_commands_need() -> None:
    (requirement,) = map(Requirement, PROJECT["optional-dependencies"]["all"])
    assert requirement.extras == {*EXTRA_OF_MODULE.values(), "serve"}


def test_text_is_generated_without_any_extra(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one line of words after another\n" * 50, encoding="utf-8")
    train_tokenizer(load_documents(f"text:{tmp_path}/text.txt", "all"), 300).save_pretrained(tmp_path / "model")
    config = AlibiGPTConfig(vocab_size=300, hidden_size=48, num_hidden_layers=1, num_attention_heads=3)
    AlibiGPTForCausalLM(config).save_pretrained(tmp_path / "model")
    words = ["generate", "--model", str(tmp_path / "model"), "--prompt", "one", "--set", "max_new_tokens=2", "--json"]
    done = run_without(OF_EXTRAS, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["text"].startswith("one")


@pytest.mark.parametrize(
    ("command", "hidden", "extra"),
    [
        (["train", "--config", str(ROOT / "configs/experiment/demo.yaml")], OF_EXTRAS, "train"),
        (["sweep"], ["optuna", "sqlalchemy"], "sweep"),
        (["explore"], ["gradio"], "explore"),
        (["report", "--records", "x.jsonl", "--output-dir", "x"], ["matplotlib"], "report"),
    ],
)
def test_a_command_without_its_extra_says_which(command: list[str], hidden: list[str], extra: str) -> None:
    done = run_without(hidden, *command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and done.stderr.endswith(f"pip install 'alibi-gpt[{extra}]'\n"), done.stderr


def brought_by(extra: str) -> set[str]:
    requirements = [Requirement(line) for line in PROJECT["optional-dependencies"][extra]]
    included = (brought_by(name) for requirement in requirements for name in requirement.extras)
    return {requirement.name for requirement in requirements}.union(*included)


@pytest.mark.parametrize(
    ("extra", "command", "config", "key"),
    [
        ("train", "train", "experiment/fine_tune", "model.checkpoint"),
        ("train", "evaluate", "evaluation/perplexity", "model"),
        ("train", "compare", "comparison/recall", "experiment"),
        ("sweep", "sweep", "sweep/demo_posthoc", "checkpoint"),
    ],
)
def test_an_extra_brings_all_that_its_commands_import(
    extra: str, command: str, config: str, key: str, tmp_path: Path
) -> None:
    """Without the other extras, a command gets as far as its model or experiment, which does not exist."""
    words = [command, "--config", str(ROOT / f"configs/{config}.yaml"), "--set", f"{key}={tmp_path}/missing"]
    done = run_without(sorted(set(OF_EXTRAS) - brought_by(extra)), *words)
    assert done.returncode == 2
    assert f"{tmp_path}/missing" in done.stderr


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "modeling_alibi_gpt.__version__"}


@pytest.mark.slow
def test_the_source_distribution_has_what_tests_read(tmp_path: Path) -> None:
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    source = tmp_path / "source"
    for name in listed:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    assert {name for name in listed if not name.startswith(".")} <= held
    assert "alibi_gpt_cli/configs/experiment/demo.yaml" in held
