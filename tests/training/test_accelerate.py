"""The files of configs/accelerate train what one process does, and go on with other numbers of processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, merge_fsdp_weights
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from transformers import TrainingArguments

from modeling_alibi_gpt import AlibiGPTForCausalLM
from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.runtime.records import read_records
from modeling_alibi_gpt.training.arguments import _check_sharding, build_arguments
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from tests.support.fsdp_on_cpu import shard_on_cpu
from tests.support.train_commands import exit_code, start_training


CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
ALL = sorted(path.name for path in CONFIGS.glob("*.yaml"))
SHARDED = [name for name in ALL if name.startswith("fsdp2")]
NUM_STEPS, LEARNING_RATE = 10, 1e-2
SETTINGS = [
    *(f"model.config.{name}=0.0" for name in ("embd_pdrop", "resid_pdrop", "attention_dropout")),
    "training.logging_steps=1",
    "global_batch_size=6",  # for one, two and three processes
    "training.optim=sgd",  # Adam makes a whole step of a gradient that is all rounding
    "training.max_grad_norm=0",
]
# A loss is a mean of 6 x 31 terms of one sign, summed in another order in every split.
LOSS_TOLERANCE = 2 * 6 * 31 * torch.finfo(torch.float32).eps
# The promise for float32 gradients, times what the learning rate and the steps make of it.
WEIGHT_TOLERANCE = NUM_STEPS * LEARNING_RATE * 1e-5


def launcher_environment(name: str, num_processes: int) -> dict[str, str]:
    """What ``accelerate launch --config_file`` exports to its processes, by accelerate's own code."""
    command = ["--config_file", str(CONFIGS / name), "--num_processes", str(num_processes), "train.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    before = dict(os.environ)
    environment = prepare_multi_gpu_env(args)
    return {key: value for key, value in environment.items() if before.get(key) != value}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(name: str, num_processes: int, experiment_file: Path, *settings: str, **options: Any) -> list[BaseProcess]:
    port = free_port()
    meeting = {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes), "MASTER_PORT": str(port)}
    environment = {**launcher_environment(name, num_processes), **meeting, "MASTER_ADDR": "127.0.0.1"}
    return [
        start_training(
            experiment_file,
            *SETTINGS,
            *settings,
            environment={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            prepare=shard_on_cpu,
            **(options if rank == 0 else {}),
        )
        for rank in range(num_processes)
    ]


def losses(run: Path) -> list[float]:
    return [entry["nats_per_token"] for entry in read_records(run / "training.jsonl")[0]["loss_history"]]


def assert_same_training(run: Path, expected: Path) -> None:
    assert losses(run) == pytest.approx(losses(expected), rel=LOSS_TOLERANCE)
    weights, references = (AlibiGPTForCausalLM.from_pretrained(folder).state_dict() for folder in (run, expected))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, references[name], rtol=0.0, atol=WEIGHT_TOLERANCE, msg=name)


@pytest.fixture
def one(experiment_file: Path) -> Path:
    """What one process trains."""
    run = experiment_file.parent / "one"
    assert exit_code(start_training(experiment_file, *SETTINGS, f"training.output_dir={run}")) == 0
    assert len(set(losses(run))) == NUM_STEPS
    return run


@pytest.mark.parametrize("name", ["ddp.yaml", *SHARDED])
def test_two_processes_train_what_one_does(experiment_file: Path, one: Path, name: str) -> None:
    """Embeddings are tied in this model."""
    processes = start(name, 2, experiment_file)
    assert [exit_code(process) for process in processes] == [0, 0]
    run = experiment_file.parent / "run"
    assert_same_training(run, one)
    is_sharded = (run / "checkpoint-10" / "pytorch_model_fsdp_0" / "__1_0.distcp").exists()
    assert is_sharded == (name in SHARDED) != (run / "checkpoint-10" / "model.safetensors").exists()


def test_a_sharded_model_is_measured_in_any_number_of_batches(experiment_file: Path) -> None:
    """All processes of a sharded model make the same calls, even if the batches cannot be divided among them."""
    settings = ["data.max_validation_tokens=289", "training.max_steps=1"]
    processes = start("fsdp2.yaml", 2, experiment_file, *settings)
    run = experiment_file.parent / "one"
    processes.append(start_training(experiment_file, *SETTINGS, *settings, f"training.output_dir={run}"))
    assert [exit_code(process) for process in processes] == [0, 0, 0]
    of_two, of_one = (read_records(each / "training.jsonl")[0] for each in (experiment_file.parent / "run", run))
    assert of_two["validation_nats_per_token"] == pytest.approx(
        of_one["validation_nats_per_token"], rel=LOSS_TOLERANCE
    )


@pytest.mark.parametrize("tied", ["true", "false"])
def test_a_sharded_head_is_used_in_chunks(experiment_file: Path, tied: str) -> None:
    settings = ["loss_chunk_tokens=50", f"model.config.tie_word_embeddings={tied}"]
    processes = start("fsdp2.yaml", 2, experiment_file, *settings)
    run = experiment_file.parent / "one"
    processes.append(start_training(experiment_file, *SETTINGS, *settings, f"training.output_dir={run}"))
    assert [exit_code(process) for process in processes] == [0, 0, 0]
    assert_same_training(experiment_file.parent / "run", run)


def test_a_sharded_run_goes_on_with_another_number_of_processes(experiment_file: Path, one: Path) -> None:
    first, *others = start("fsdp2.yaml", 3, experiment_file, killed_at="open checkpoint-8/trainer_state.json")
    assert exit_code(first) == -signal.SIGKILL
    for process in others:
        process.kill()
    processes = start("fsdp2.yaml", 2, experiment_file)
    assert [exit_code(process) for process in processes] == [0, 0]
    run = experiment_file.parent / "run"
    assert read_records(run / "training.jsonl")[0]["resumed_from"] == "checkpoint-4"
    assert_same_training(run, one)


def test_shards_are_merged_into_a_model(experiment_file: Path) -> None:
    processes = start("fsdp2.yaml", 2, experiment_file, "model.config.alibi_trainable=slopes")
    assert [exit_code(process) for process in processes] == [0, 0]
    run = experiment_file.parent / "run"
    checkpoint, merged = run / "checkpoint-10", experiment_file.parent / "merged"
    merge_fsdp_weights(str(checkpoint / "pytorch_model_fsdp_0"), str(merged))
    (merged / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    model, expected = (AlibiGPTForCausalLM.from_pretrained(folder) for folder in (merged, run))
    assert model.model.position_method.bias_log_slopes.requires_grad
    for (name, weight), reference in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(weight, reference), name
    assert load_file(run / "model.safetensors").keys() == dict(model.named_parameters()).keys()


def test_shards_are_refused_by_a_process_that_does_not_shard(experiment_file: Path) -> None:
    first, second = start("fsdp2.yaml", 2, experiment_file, killed_at="open checkpoint-8/trainer_state.json")
    assert exit_code(first) == -signal.SIGKILL
    second.kill()
    last = start_training(experiment_file, *SETTINGS)
    assert exit_code(last) == 2
    [error] = (experiment_file.parent / f"{last.pid}.log").read_text().splitlines()[-1:]
    assert error.startswith("error: ") and "only supported when using PyTorch FSDP" in error


def test_sharding_that_accelerate_would_leave_out_is_refused(
    make_experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP needs accelerators: on CPUs accelerate would silently train a whole"):
        build_arguments(make_experiment())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")  # transformers asks for the package first
    with pytest.raises(ValueError, match="DeepSpeed needs accelerators"):
        _check_sharding(SimpleNamespace(fsdp=None, deepspeed=None, use_cpu=True))


def test_the_experiment_that_the_docs_launch_takes_so_many_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (CONFIGS.parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
    ((num_processes, experiment, words),) = re.findall(
        r"--num_processes (\d+) scripts/train\.py --config (\S+)(.*)", page
    )
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda arguments: int(num_processes)))
    overrides = [*re.findall(r"--set (\S+)", words), f"training.output_dir={tmp_path}"]
    config = load_config(ExperimentConfig, CONFIGS.parents[1] / experiment, overrides)
    arguments = build_arguments(config)
    sequences = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * int(num_processes)
    assert sequences == config.global_batch_size


@pytest.mark.parametrize("name", ALL)
def test_files_are_read_by_accelerate(name: str) -> None:
    """It refuses unknown keys of the first level only."""
    config = load_config_from_file(str(CONFIGS / name))
    engine = {"single_gpu": "NO", "ddp": "MULTI_GPU", "deepspeed_zero3": "DEEPSPEED"}.get(name[:-5], "FSDP")
    assert config.distributed_type == DistributedType(engine)
    assert config.mixed_precision == "no", "the experiment decides"
    assert f"--config_file configs/accelerate/{name} " in (CONFIGS / name).read_text(encoding="utf-8")
    options = {action.dest for action in launch_command_parser()._actions}
    raw = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
    for section in ("fsdp_config", "deepspeed_config"):
        assert raw.get(section, {}).keys() <= options, section


def test_deepspeed_is_asked_for_zero_3() -> None:
    command = ["--config_file", str(CONFIGS / "deepspeed_zero3.yaml"), "train.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert (args.use_deepspeed, args.zero_stage, args.zero3_save_16bit_model) == (True, 3, True)


SRUN = """#!/bin/bash
# Two nodes on this machine.
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=1 "$@" > "$NODE_1_LOG" 2>&1 &
SLURM_NODEID=0 "$@" || { kill $!; exit 1; }
wait $!
"""


@pytest.mark.slow
def test_slurm_script_trains_on_two_nodes(experiment_file: Path, tmp_path: Path) -> None:
    """With ``srun`` and ``scontrol`` of a cluster whose nodes are this machine, and real launchers."""
    tools = tmp_path / "bin"
    tools.mkdir()
    commands = {
        "srun": SRUN,
        "scontrol": "#!/bin/bash\necho 127.0.0.1\necho 127.0.0.2\n",
        "accelerate": f'#!/bin/bash\nshift\nexec {sys.executable} -m accelerate.commands.launch "$@"\n',
    }
    for name, text in commands.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": str(os.getpid())}
    done = subprocess.run(
        ["bash", str(CONFIGS.parents[1] / "scripts" / "slurm.sh"), str(CONFIGS / "ddp.yaml"), str(experiment_file)]
        + ["--set", "training.max_steps=4", "--json"],
        env={
            **os.environ,
            **slurm,
            "PROCESSES_PER_NODE": "1",
            "MAIN_PORT": str(free_port()),
            "NODE_1_LOG": str(tmp_path / "node1.log"),
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        }
        | {"HF_DATASETS_CACHE": datasets.config.HF_DATASETS_CACHE, "HF_HUB_OFFLINE": "1"},
        cwd=CONFIGS.parents[1],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stderr}\nnode 1: {(tmp_path / 'node1.log').read_text()}"
    assert json.loads(done.stdout.splitlines()[-1])["num_steps"] == 4
    checkpoint = experiment_file.parent / "run" / "checkpoint-4"
    assert {path.name for path in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}


def test_slurm_script_says_what_it_takes() -> None:
    script = str(CONFIGS.parents[1] / "scripts" / "slurm.sh")
    done = subprocess.run(["bash", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and done.stderr.startswith("usage: sbatch scripts/slurm.sh ")
