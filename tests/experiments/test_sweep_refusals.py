"""Mistakes in a sweep: one line that names them, before anything is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from modeling_alibi_gpt.experiments import sweep as beta_sweep
from modeling_alibi_gpt.experiments.sweep import SweepConfig
from tests.bad_input.refusals import script
from tests.support.sweep_cases import tiny_experiment


pytestmark = pytest.mark.usefixtures("one_thread_and_a_cache")

RETRAIN_MISTAKES = {
    "betas=[1, 0]": "'betas[1]' must be above 0, got 0",
    "betas=[1, -2.0]": "'betas[1]' must be above 0, got -2.0",
    "betas=[.nan]": "'betas[0]' must be a finite number, got nan",
    "betas=[.inf]": "'betas[0]' must be a finite number, got inf",
    "betas=[]": "set at least one beta",
    "betas=[one]": "'betas[0]' must be a valid number, got 'one'",
    "beta_low=8": "beta_low below beta_high",
    "sampler_seed=-1": "'sampler_seed' must be at least 0, got -1",
    "num_trials=0": "'num_trials' must be at least 1",
    "seeds=[]": "seeds must be a list of one or more different values",
    "seeds=[1, 1]": "seeds must be a list of one or more different values",
    "trained=[gamma]": "'trained[0]' must be 'beta' or 'slopes', got 'gamma'",
    "mode=training": "'mode' must be 'retrain' or 'posthoc', got 'training'",
    "mode=posthoc": "mode posthoc needs 'checkpoint' and does not use 'experiment'",
    "checkpoint=somewhere": "mode retrain needs 'experiment' and does not use 'checkpoint'",
    "experiment=/nowhere.yaml": "/nowhere.yaml: no such file",
    "pruning=true": "set training.eval_strategy in the experiment",
    "bettas=[1]": "unknown key 'bettas'; did you mean 'betas'?",
    "experiment_overrides=['alibi_beta_schedule={start: 4, end: 1}']": "remove alibi_beta_schedule",
    "experiment_overrides=[precision=auto]": "one precision for all its trainings",
    "experiment.model.overrides.position_method=sinusoidal": "needs position_method alibi, but the experiment",
    "experiment.data.source=text:/nowhere/*.txt": "/nowhere/*.txt",
    "source=text:books/*.txt": "source would have no effect: mode retrain reads the text of the experiment",
    "dtype=bfloat16": "dtype would have no effect: mode retrain",
    "length_tokens=8": "length_tokens would have no effect: mode retrain",
    "experiment_overrides=[training.max_step=1]": "unknown key 'training.max_step'",
    "storage=sqlite:////dev/null/study.db": "/dev/null",
    "storage=nonsense://study": "storage nonsense://study cannot be opened as a study",
}


def refused(arguments: list[str], output_dir: Path, message: str, capsys: pytest.CaptureFixture) -> None:
    settings = [part for argument in arguments for part in ("--set", argument)]
    assert script("sweep_beta").main([*settings, "--set", f"output_dir={output_dir}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    progress = "examples/s]"
    [line] = [line for line in captured.err.splitlines() if line.strip() and progress not in line]
    assert line.startswith("error: ") and message in line
    assert not output_dir.exists()


@pytest.mark.parametrize("mistake", RETRAIN_MISTAKES)
def test_mistakes_in_a_retrain_sweep(mistake: str, root: Path, tmp_path: Path, capsys):
    experiment = json.dumps(tiny_experiment(root))
    refused([f"experiment={experiment}", mistake], tmp_path / "refused", RETRAIN_MISTAKES[mistake], capsys)


POSTHOC_MISTAKES = {
    "checkpoint=/nowhere": "/nowhere: no model here",
    "pruning=true": "pruning would have no effect: mode posthoc trains nothing",
    "seeds=[0, 1]": "seeds would have no effect: mode posthoc trains nothing",
    "experiment_overrides=[training.max_steps=2]": "experiment_overrides would have no effect: mode posthoc",
    "trained=[slopes]": "trained would have no effect: mode posthoc",
    "trainings_dir=shared": "trainings_dir would have no effect: mode posthoc",
    "length_tokens=0": "'length_tokens' must be at least 1, got 0",
    "length_tokens=100000": "a window of 100000 needs 100001",
    "stride_tokens=4": "stride_tokens is not used here: a sweep reads windows without overlap",
    "source=text:/nowhere": "/nowhere",
    "dtype=float8": "'dtype' must be 'float32' or 'bfloat16'",
}


@pytest.mark.parametrize("mistake", POSTHOC_MISTAKES)
def test_mistakes_in_a_posthoc_sweep(mistake: str, posthoc: SweepConfig, tmp_path: Path, capsys):
    arguments = ["mode=posthoc", f"checkpoint={posthoc.checkpoint}", f"source={posthoc.source}", mistake]
    refused(arguments, tmp_path / "refused", POSTHOC_MISTAKES[mistake], capsys)


@pytest.mark.parametrize("setting", ["num_trials=4", "beta_low=0.5", "beta_high=2.0", "sampler_seed=1"])
def test_a_grid_samples_nothing(setting: str, root: Path, tmp_path: Path, capsys):
    arguments = [f"experiment={json.dumps(tiny_experiment(root))}", "betas=[1.0, 2.0]", setting]
    message = f"{setting.partition('=')[0]} would have no effect: betas are given, so none is sampled"
    refused(arguments, tmp_path / "refused", message, capsys)


@pytest.mark.parametrize("method", ["sinusoidal", "mpt"])
def test_posthoc_needs_alibi(method: str, make_folder: Callable[[str], str], source: str, tmp_path: Path, capsys):
    arguments = ["mode=posthoc", f"checkpoint={make_folder(method)}", f"source={source}"]
    capsys.readouterr()
    refused(arguments, tmp_path / "refused", "a sweep of beta needs an AlibiGPT with ALiBi", capsys)


def test_posthoc_needs_slopes_that_beta_decides(finished: SweepConfig, tmp_path: Path, capsys):
    arguments = ["mode=posthoc", f"checkpoint={finished.output_dir}/trained/slopes-seed-0"]
    refused(arguments, tmp_path / "refused", "untrained slopes", capsys)


def test_posthoc_needs_whole_weights(posthoc: SweepConfig, tmp_path: Path, capsys):
    torn = tmp_path / "torn"
    shutil.copytree(posthoc.checkpoint, torn)
    weights = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    arguments = ["mode=posthoc", f"checkpoint={torn}", f"source={posthoc.source}"]
    refused(arguments, tmp_path / "refused", "truncated or damaged", capsys)


@pytest.mark.parametrize(
    "mistake", ["seeds=[0]", "experiment.data.train_length_tokens=8", "experiment.model.config.hidden_size=8"]
)
def test_a_study_of_another_objective(mistake: str, copied: SweepConfig, tmp_path: Path, capsys):
    before = {path: path.stat().st_mtime_ns for path in Path(copied.output_dir).rglob("*.json*")}
    settings = [
        f"experiment={json.dumps(copied.experiment)}",
        "seeds=[0, 1]",
        f"storage={copied.storage_url}",
        mistake,
    ]
    key = mistake.partition("=")[0]
    message = f"belongs to another objective, with different values of {key}; choose another study_name"
    refused(settings, tmp_path / "refused", message, capsys)
    assert {path: path.stat().st_mtime_ns for path in Path(copied.output_dir).rglob("*.json*")} == before


def test_a_study_whose_beta_was_learned_from_another_one(copied: SweepConfig, tmp_path: Path, capsys):
    settings = [
        *(f"experiment={json.dumps(copied.experiment)}", "seeds=[0, 1]", "trained=[beta, slopes]", "betas=[0.5, 1]"),
        *(f"storage={copied.storage_url}", "experiment_overrides=[model.overrides.alibi_beta=8.0]"),
    ]
    message = "belongs to another objective, with different values of alibi_beta; choose another study_name"
    refused(settings, tmp_path / "refused", message, capsys)


def test_one_process_a_worker(copied: SweepConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    state = type("TwoProcesses", (), {"num_processes": 2})
    monkeypatch.setattr(beta_sweep, "process_state", state)
    arguments = [f"experiment={json.dumps(copied.experiment)}"]
    refused(arguments, tmp_path / "refused", "start the command several times instead of launching it", capsys)
