"""Every script of a command is that command: its result, and one line with exit code 2 for a user's mistake."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.data.corpora import load_documents
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer


ROOT = Path(__file__).parent.parent
OWN_SCRIPTS = {"download_gutenberg"}  # of a checkout only
SCRIPTS = sorted({path.stem for path in (ROOT / "scripts").glob("*.py")} - OWN_SCRIPTS)
TEXT = "\n".join(f"def function_{number}(x):\n    return x + {number}\n" for number in range(200))


def run_script(name: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``text.txt`` and a random ``model``."""
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    tokenizer = train_tokenizer(load_documents(f"text:{folder}/text.txt", "all"), 300)
    torch.manual_seed(0)
    config = AlibiGPTConfig(
        vocab_size=300, hidden_size=48, num_hidden_layers=1, num_attention_heads=3, train_context_length=16
    )
    AlibiGPTForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_the_command_of_its_name(name: str) -> None:
    done = run_script(name, "--help")
    assert done.returncode == 0 and f"Usage: alibi-gpt {name.split('_')[0]} [OPTIONS]" in done.stdout


def test_json_is_the_last_line_where_it_is_asked_for(folder: Path) -> None:
    """And the script runs in the folder whose ``evaluate.py`` hides the library of that name."""
    command = ["--model", str(folder / "model"), "--data", f"text:{folder}/text.txt", "--set", "max_tokens=200"]
    done = run_script("evaluate", *command, "--json")
    assert done.returncode == 0, done.stderr
    first, second, last = done.stdout.splitlines()
    assert f"perplexity {json.loads(last)['perplexity']:.3f}" in first and second.startswith("over ")


def test_extrapolate_then_report(folder: Path) -> None:
    done = run_script(
        *("extrapolate", "--models", str(folder / "model"), "--lengths", "16", "64", "--data"),
        *(f"text:{folder}/text.txt", "--output", str(folder / "rows.jsonl"), "--set", "max_tokens=500", "--json"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["num_rows"] == 4
    done = run_script(
        "report", "--records", str(folder / "rows.jsonl"), "--output-dir", str(folder / "report"), "--json"
    )
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout.splitlines()[-1])["html"]).stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", ["--config", "missing.yaml"], "missing.yaml: no such file"),
        ("train", ["--config", "configs/experiment/demo.yaml", "--set", "modle.config=x"], "did you mean 'model'"),
        ("evaluate", ["--model", "missing"], "missing: no model here"),
        ("evaluate", ["--set", "modl=missing"], "did you mean 'model'"),
        ("extrapolate", ["--models", "missing", "--lengths", "8"], "missing: no model here"),
        (
            "sweep_beta",
            ["--set", "output_dir=x", "--set", "experiment=x", "--set", "betas=[0]"],
            "'betas[0]' must be above 0, got 0",
        ),
        ("generate", ["--model", "missing", "--prompt", "x"], "missing: no model here"),
        ("convert", ["--model", "missing", "--output-dir", "x", "--to", "t5"], "'to' must be 'alibi_gpt', 'bloom'"),
        ("export_to_hub", ["--model", "missing", "--output-dir", "x"], "missing: no model here"),
        ("report", ["--records", "missing.jsonl", "--output-dir", "x"], "missing.jsonl does not exist"),
    ],
)
def test_one_line_and_exit_code_2(name: str, arguments: list[str], message: str, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main(arguments) == 2
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert last_line.startswith("error: ") and message in last_line
    assert not (ROOT / "x").exists()
