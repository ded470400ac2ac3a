"""Killed at any moment, the same command goes on and ends with the same weights and losses, to the last bit."""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.runtime.records import read_records
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.trainer import train
from tests.support.train_commands import exit_code, start_training


KEEP_ONE = "training.save_total_limit=1"
# One after another in a run of 10 steps that keeps one of its checkpoints 4, 8 and 10.
STAGES = (
    "open .lock",
    "open .experiment.json.*.tmp",
    "os.rename .experiment.json.*.tmp",
    "open .data.json.*.tmp",
    "os.rename .data.json.*.tmp",
    "os.mkdir checkpoint-4",
    "open checkpoint-4/config.json",
    "open checkpoint-4/trainer_state.json",
    "open checkpoint-4/.manifest.json.*.tmp",
    "open checkpoint-8/generation_config.json",
    "os.rename checkpoint-8/.manifest.json.*.tmp",
    "shutil.rmtree checkpoint-4",
    "open checkpoint-10/.manifest.json.*.tmp",
    "open checkpoint-10/trainer_state.json",
    "os.rmdir checkpoint-4",
    "open .saving/config.json",
    "os.rename .saving/tokenizer.json",
    "os.rename .saving/model.safetensors",
    "os.rename .saving/config.json",
    "shutil.rmtree .saving",
    "open .manifest.json.*.tmp",
    "open .training.jsonl.*.tmp",
    "os.rename .training.jsonl.*.tmp",
)
CHECKPOINT_FILES = (  # in the order in which Trainer writes them
    *("config.json", "generation_config.json", "model.safetensors", "training_args.bin", "optimizer.pt"),
    *("scheduler.pt", "rng_state.pth", "trainer_state.json", "manifest.json"),
)
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "halved": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
}


def outcome(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """Final weights and record of a run, without what tells one call from another."""
    record = read_records(folder / "training.jsonl")[0]
    for field in ("model_dir", "provenance", "train_seconds", "resumed_from"):
        del record[field]
    return (folder / "model.safetensors").read_bytes(), record


@pytest.fixture(scope="module")
def uninterrupted(write_experiment: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Outcome of the tiny experiment."""
    experiment_file = write_experiment(tmp_path_factory.mktemp("uninterrupted"))
    assert exit_code(start_training(experiment_file)) == 0
    return outcome(experiment_file.parent / "run")


def test_killed_at_every_stage(experiment_file: Path, uninterrupted: Any) -> None:
    for stage in STAGES:
        assert exit_code(start_training(experiment_file, KEEP_ONE, killed_at=stage)) == -signal.SIGKILL, stage
    assert exit_code(start_training(experiment_file, KEEP_ONE)) == 0
    run = experiment_file.parent / "run"
    assert outcome(run) == uninterrupted
    assert read_records(run / "training.jsonl")[0]["resumed_from"] == "checkpoint-10"
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == [".lock"]


def test_killed_at_random_moments(experiment_file: Path, uninterrupted: Any) -> None:
    moments = random.Random(0)
    for _ in range(6):
        process = start_training(experiment_file)
        time.sleep(moments.uniform(0.0, 0.6))
        process.kill()
        assert exit_code(process) in (-signal.SIGKILL, 0)
    assert exit_code(start_training(experiment_file)) == 0
    assert outcome(experiment_file.parent / "run") == uninterrupted


@pytest.mark.slow
def test_killed_at_every_file_operation(experiment_file: Path, uninterrupted: Any) -> None:
    run, number, code = experiment_file.parent / "run", 0, None
    while code != 0:
        shutil.rmtree(run, ignore_errors=True)
        number += 1
        code = exit_code(start_training(experiment_file, KEEP_ONE, killed_at=number))
        assert code in (-signal.SIGKILL, 0)
        assert exit_code(start_training(experiment_file, KEEP_ONE)) == 0, number
        assert outcome(run) == uninterrupted, number
    assert number > 40


@pytest.mark.parametrize(
    "settings",
    [
        ["training.gradient_accumulation_steps=2", "data.isolate_documents=true", "training.eval_strategy=epoch"],
        ["training.save_strategy=epoch", "training.logging_strategy=epoch"],
        ["precision=bfloat16", "training.lr_scheduler_type=cosine", "model.overrides.alibi_trainable=slopes"],
        ["position_learning_rate=30", "training.lr_scheduler_type=cosine", "model.overrides.alibi_trainable=beta"],
    ],
    ids=["evaluation", "epochs", "bfloat16", "positions"],
)
def test_other_ways_to_train_resume_too(
    experiment_file: Path, write_experiment: Callable[[Path], Path], tmp_path: Path, settings: list[str]
) -> None:
    (tmp_path / "straight").mkdir()
    straight_file = write_experiment(tmp_path / "straight")
    straight = start_training(straight_file, *settings)
    assert exit_code(start_training(experiment_file, *settings, killed_at="os.mkdir checkpoint-8")) == -signal.SIGKILL
    assert exit_code(start_training(experiment_file, *settings)) == 0
    assert exit_code(straight) == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight" / "run")


def test_a_run_that_was_moved_goes_on_and_keeps_its_best_model(
    experiment_file: Path, write_experiment: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Also where its folder is only spelled in another way; the checkpoint of the best model moves with it."""
    best = ["load_best_model_at_end=true", "metric_for_best_model=nats_per_token", "learning_rate=3.0"]
    settings = [f"training.{setting}" for setting in (*best, "eval_strategy=steps", "eval_steps=2", "save_steps=2")]
    (tmp_path / "straight").mkdir()
    straight = start_training(write_experiment(tmp_path / "straight"), *settings)
    assert exit_code(start_training(experiment_file, *settings, killed_at="os.mkdir checkpoint-8")) == -signal.SIGKILL
    state = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_global_step"] < 6, "this learning rate must diverge, or the test shows nothing"
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = f"training.output_dir={tmp_path}/straight/../moved/"
    assert exit_code(start_training(experiment_file, *settings, moved)) == 0
    assert exit_code(straight) == 0
    assert outcome(tmp_path / "moved") == outcome(tmp_path / "straight" / "run")
    assert read_records(tmp_path / "moved" / "training.jsonl")[0]["resumed_from"] == "checkpoint-6"
    finished = load_config(ExperimentConfig, str(experiment_file), [*settings, f"training.output_dir={tmp_path}/end"])
    (tmp_path / "moved").rename(tmp_path / "end")
    assert train(finished)["model_dir"] == str(tmp_path / "end")


class Interrupted:
    """A run that was killed after its second checkpoint was whole, and that can be set back to that moment."""

    def __init__(self, experiment_file: Path) -> None:
        self.config = load_config(ExperimentConfig, str(experiment_file))
        self.run = experiment_file.parent / "run"
        self.copy = experiment_file.parent / "copy"
        assert exit_code(start_training(experiment_file, killed_at="os.mkdir checkpoint-10")) == -signal.SIGKILL
        shutil.copytree(self.run, self.copy)

    def set_back(self) -> Path:
        """The last checkpoint."""
        shutil.rmtree(self.run)
        shutil.copytree(self.copy, self.run)
        return self.run / "checkpoint-8"


@pytest.fixture(scope="module")
def interrupted(write_experiment: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    return Interrupted(write_experiment(tmp_path_factory.mktemp("interrupted")))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_truncated_checkpoint_is_not_used(
    interrupted: Interrupted, uninterrupted: Any, one_thread: None, name: str, damage: str
) -> None:
    checkpoint = interrupted.set_back()
    assert {path.name for path in checkpoint.iterdir()} == set(CHECKPOINT_FILES)
    path = checkpoint / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    # The manifest, without its last newline, says what it said; other files must be what it says.
    is_whole = damage == "one byte short" and name == "manifest.json"
    assert train(interrupted.config)["resumed_from"] == ("checkpoint-8" if is_whole else "checkpoint-4")
    assert outcome(interrupted.run) == uninterrupted


@pytest.mark.parametrize("num_files", [0, 3, 8])
def test_checkpoint_killed_between_its_files_is_not_used(
    interrupted: Interrupted, uninterrupted: Any, one_thread: None, num_files: int
) -> None:
    checkpoint = interrupted.set_back()
    for name in CHECKPOINT_FILES[num_files:]:
        (checkpoint / name).unlink()
    assert train(interrupted.config)["resumed_from"] == "checkpoint-4"
    assert outcome(interrupted.run) == uninterrupted


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_checkpoint_that_lacks_a_file_is_dropped_and_named(
    interrupted: Interrupted, uninterrupted: Any, one_thread: None, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    checkpoint = interrupted.set_back()
    (checkpoint / name).unlink()
    assert train(interrupted.config)["resumed_from"] == "checkpoint-4"
    assert outcome(interrupted.run) == uninterrupted
    [warning] = [record.getMessage() for record in caplog.records if "damaged checkpoint" in record.getMessage()]
    assert warning.startswith(f"deleting the damaged checkpoint {checkpoint}: {name} is missing.")


@pytest.mark.parametrize("step", [10**9, -5])
def test_a_step_that_was_not_trained_is_not_believed(
    interrupted: Interrupted, uninterrupted: Any, one_thread: None, step: int
) -> None:
    path = interrupted.set_back() / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"global_step": step}), encoding="utf-8")
    assert train(interrupted.config)["resumed_from"] == "checkpoint-4"
    assert outcome(interrupted.run) == uninterrupted


def test_one_other_bit_in_the_weights_is_noticed(
    interrupted: Interrupted, uninterrupted: Any, one_thread: None
) -> None:
    path = interrupted.set_back() / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert train(interrupted.config)["resumed_from"] == "checkpoint-4"
    assert outcome(interrupted.run) == uninterrupted


def test_an_older_checkpoint_is_there_until_the_new_one_has_its_manifest(
    experiment_file: Path, uninterrupted: Any, one_thread: None
) -> None:
    killed_at = "open checkpoint-8/.manifest.json.*.tmp"
    assert exit_code(start_training(experiment_file, KEEP_ONE, killed_at=killed_at)) == -signal.SIGKILL
    assert exit_code(start_training(experiment_file, KEEP_ONE)) == 0
    run = experiment_file.parent / "run"
    assert read_records(run / "training.jsonl")[0]["resumed_from"] == "checkpoint-4"
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-10"]
    assert outcome(run) == uninterrupted


def test_going_on_warns_of_nothing(
    interrupted: Interrupted, one_thread: None, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted.set_back()
    train(interrupted.config)
    assert "missing keys" not in caplog.text, "tied weights are no missing ones"


def test_without_a_whole_checkpoint_the_run_starts_again(
    interrupted: Interrupted, uninterrupted: Any, one_thread: None
) -> None:
    interrupted.set_back()
    for checkpoint in interrupted.run.glob("checkpoint-*"):
        (checkpoint / "trainer_state.json").write_text("{", encoding="utf-8")
    assert train(interrupted.config)["resumed_from"] is None
    assert outcome(interrupted.run) == uninterrupted
