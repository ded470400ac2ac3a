"""Two processes train what one does, and processes that cannot cooperate say so instead of training twice."""

import json
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from modeling_alibi_gpt.runtime.distributed import process_state
from modeling_alibi_gpt.runtime.records import read_records
from modeling_alibi_gpt.training.run_folder import claimed_output_dir
from modeling_alibi_gpt.training.trainer import train
from tests.support.train_commands import SCRIPT, exit_code, start_training


NO_DROPOUT = [f"model.config.{name}=0.0" for name in ("embd_pdrop", "resid_pdrop", "attention_dropout")]
EVERY_LOSS = "training.logging_steps=1"
ACCUMULATE_TWO = "training.gradient_accumulation_steps=2"


def start_two(experiment_file: Path, *settings: str, killed_at: str | None = None) -> list[BaseProcess]:
    """Two processes as ``torchrun`` starts them; ``killed_at`` concerns the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start_training(
            experiment_file,
            *settings,
            killed_at=killed_at if rank == 0 else None,
            environment={**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]


def exit_codes(processes: list[BaseProcess]) -> list[int]:
    return [exit_code(process) for process in processes]


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def losses(run: Path) -> list[float]:
    return [entry["nats_per_token"] for entry in read_records(run / "training.jsonl")[0]["loss_history"]]


def errors(folder: Path) -> list[str]:
    """The lines of all logs that report a user's error."""
    return [line for log in folder.glob("*.log") for line in log.read_text().splitlines() if "error: " in line]


def test_a_training_that_diverges_ends_in_every_process(experiment_file: Path) -> None:
    diverging = ("training.learning_rate=1e9", "training.max_grad_norm=0")
    assert exit_codes(start_two(experiment_file, *diverging)) == [2, 2]
    assert any("the loss is nan at step" in line for line in errors(experiment_file.parent))


def test_two_processes_train_what_one_does(experiment_file: Path) -> None:
    folder = experiment_file.parent
    assert exit_codes(start_two(experiment_file, *NO_DROPOUT, EVERY_LOSS)) == [0, 0]
    halves, whole = folder / "halves", folder / "whole"
    one = [
        start_training(experiment_file, *NO_DROPOUT, EVERY_LOSS, f"training.output_dir={halves}", ACCUMULATE_TWO),
        start_training(experiment_file, *NO_DROPOUT, EVERY_LOSS, f"training.output_dir={whole}"),
    ]
    assert exit_codes(one) == [0, 0]

    # Each process sums the gradients of half a global batch, as one does that accumulates two halves, and the sum of
    # two numbers has no order: the same bits, over the ends of three epochs that do not divide into global batches.
    assert losses(folder / "run") == losses(halves)
    assert weights(folder / "run") == weights(halves)
    # A whole batch sums its losses in another order: 4 x 31 terms above 0 have a relative error of at most 124 eps.
    tolerance = 2 * 124 * torch.finfo(torch.float32).eps
    assert losses(folder / "run")[0] == pytest.approx(losses(whole)[0], rel=tolerance)


def test_two_processes_train_what_one_does_without_a_shuffle_too(experiment_file: Path) -> None:
    """Each epoch is filled up to whole global batches before it is shared."""
    settings, one = (
        [*NO_DROPOUT, EVERY_LOSS, "training.train_sampling_strategy=sequential"],
        experiment_file.parent / "one",
    )
    assert exit_codes(start_two(experiment_file, *settings)) == [0, 0]
    assert exit_code(start_training(experiment_file, *settings, f"training.output_dir={one}", ACCUMULATE_TWO)) == 0
    assert losses(experiment_file.parent / "run") == losses(one)


@pytest.mark.parametrize("killed_at", ["open checkpoint-8/trainer_state.json", "open checkpoint-8/.manifest.json.*"])
def test_two_processes_that_are_killed_go_on(experiment_file: Path, killed_at: str) -> None:
    folder = experiment_file.parent
    assert exit_codes(start_two(experiment_file, f"training.output_dir={folder / 'straight'}")) == [0, 0]
    first, second = start_two(experiment_file, killed_at=killed_at)
    assert exit_code(first) == -signal.SIGKILL
    second.kill()  # as a launcher does
    assert exit_code(second) != 0
    assert exit_codes(start_two(experiment_file)) == [0, 0]
    assert read_records(folder / "run" / "training.jsonl")[0]["resumed_from"] == "checkpoint-4"
    assert weights(folder / "run") == weights(folder / "straight")
    assert losses(folder / "run") == losses(folder / "straight")
    files = json.loads((folder / "run" / "checkpoint-10" / "manifest.json").read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} < set(files), "what every process saved is listed"


def test_one_process_goes_on_where_two_were_killed(experiment_file: Path) -> None:
    settings = (*NO_DROPOUT, EVERY_LOSS)
    first, second = start_two(experiment_file, *settings, killed_at="os.mkdir checkpoint-8")
    assert exit_code(first) == -signal.SIGKILL
    second.kill()
    assert exit_code(second) != 0
    assert exit_code(start_training(experiment_file, *settings)) == 0
    record = read_records(experiment_file.parent / "run" / "training.jsonl")[0]
    assert (record["resumed_from"], record["num_train_tokens"]) == ("checkpoint-4", 10 * 4 * 32)


def test_what_one_process_refuses_ends_both(experiment_file: Path) -> None:
    folder = experiment_file.parent
    (folder / "run").mkdir()
    (folder / "run" / "precious.txt").touch()
    assert exit_codes(start_two(experiment_file)) == [2, 2]
    assert [path.name for path in (folder / "run").iterdir()] == ["precious.txt"]
    assert len(errors(folder)) == 2
    assert all("is not empty and is not a run folder" in line for line in errors(folder))


def test_a_folder_that_only_one_process_cannot_claim_ends_both(experiment_file: Path, make_experiment: Any) -> None:
    config = make_experiment()
    with claimed_output_dir(Path(config.training["output_dir"]), config, {}):
        assert exit_codes(start_two(experiment_file)) == [2, 2]
    assert [("another process is training in" in line) for line in errors(experiment_file.parent)] == [True, True]


def test_a_second_run_beside_the_first_is_refused(experiment_file: Path, make_experiment: Any) -> None:
    config = make_experiment()
    with claimed_output_dir(Path(config.training["output_dir"]), config, {}):
        assert exit_code(start_training(experiment_file)) == 2
    assert exit_code(start_training(experiment_file)) == 0, "the lock ends with its holder"


def test_precision_is_not_measured_by_several_processes(experiment_file: Path) -> None:
    assert exit_codes(start_two(experiment_file, "precision=auto")) == [2, 2]
    assert not (experiment_file.parent / "run").exists()


def test_a_global_batch_must_divide_among_processes(experiment_file: Path) -> None:
    assert exit_codes(start_two(experiment_file, "global_batch_size=3")) == [2, 2]
    assert "must be a multiple of devices x accumulation steps (2 x 1)" in errors(experiment_file.parent)[0]


@pytest.mark.parametrize("use_cpu", ["True", "False"])
def test_accelerate_launch_that_started_one_process_of_several_is_refused(
    make_experiment: Any, monkeypatch: pytest.MonkeyPatch, use_cpu: str
) -> None:
    # What `accelerate launch [--cpu] --num_processes 2` exports on a machine without several GPUs.
    for name, value in {
        "ACCELERATE_USE_CPU": use_cpu,
        "ACCELERATE_MIXED_PRECISION": "no",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }.items():
        monkeypatch.setenv(name, value)
    config = make_experiment()
    with pytest.raises(ValueError, match="several processes but started one: pass --multi_gpu"):
        train(config)
    assert not Path(config.training["output_dir"]).exists()
    with pytest.raises(ValueError, match="started one"):
        process_state()


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--nproc_per_node", "2"],
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
    ],
    ids=["torchrun", "accelerate-multi-gpu"],
)
def test_launchers_start_processes_that_cooperate(experiment_file: Path, launcher: list[str]) -> None:
    done = launch(experiment_file, launcher)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["num_train_tokens"] == 10 * 4 * 32
    assert done.stdout.count('"kind": "training"') == done.stdout.count("tiny: validation perplexity") == 1
    checkpoint = experiment_file.parent / "run" / "checkpoint-10"
    assert {path.name for path in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--cpu"], []], ids=["cpu", "plain"])
def test_one_process_started_for_two_is_refused(experiment_file: Path, flags: list[str]) -> None:
    """What ``accelerate launch`` does, without a word, on a machine without GPUs."""
    done = launch(experiment_file, ["accelerate.commands.launch", *flags, "--num_processes", "2"])
    assert done.returncode != 0 and done.stdout == ""
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "several processes but started one: pass --multi_gpu" in error and "torchrun" in error
    assert not (experiment_file.parent / "run").exists()


def launch(experiment_file: Path, launcher: list[str]) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_DATASETS_CACHE": datasets.config.HF_DATASETS_CACHE, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", *launcher, str(SCRIPT), "--config", str(experiment_file), "--json"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
