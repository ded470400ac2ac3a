"""Several workers on one study, as processes: started at once, killed at any moment, and always one whole result."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import psutil
import pytest
import yaml
from optuna.trial import FrozenTrial
from transformers import AutoModelForCausalLM

from modeling_alibi_gpt.experiments.sweep import SweepConfig, run_sweep
from tests.support.sweep_cases import losses, share_points, tiny_experiment, training_record


ROOT = Path(__file__).parents[2]
BETAS = [0.5, 1.0, 2.0]
PATIENCE_SECONDS = 600  # of a machine with much else to do


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def environment(root: Path) -> Iterator[dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(root / "datasets"))
        yield dict(os.environ)


@pytest.fixture(scope="module")
def start(environment: dict[str, str]) -> Callable[..., BaseProcess]:
    """Start a process from one that has imported everything, in no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["modeling_alibi_gpt.experiments.sweep"])

    def start_process(target: Callable, *arguments: Any) -> BaseProcess:
        process = context.Process(target=target, args=arguments)
        process.start()
        return process

    return start_process


def exit_codes(processes: Sequence[BaseProcess]) -> list[int | None]:
    for process in processes:
        process.join(timeout=PATIENCE_SECONDS)
    return [process.exitcode for process in processes]


def trials_of(config: SweepConfig, name: str = "beta") -> list[FrozenTrial]:
    return optuna.load_study(study_name=name, storage=config.storage_url).get_trials()


def finished_runs(config: SweepConfig) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path(config.output_dir).glob("tr*/*/training.jsonl")}


@pytest.fixture(scope="module")
def straight(root: Path, start: Callable[..., BaseProcess]) -> SweepConfig:
    """A sweep that nobody disturbed."""
    config = SweepConfig(
        output_dir=str(root / "straight"), experiment=tiny_experiment(root, max_steps=12), betas=BETAS, seeds=[0, 1]
    )
    assert exit_codes([start(run_sweep, config)]) == [0]
    return config


def test_every_trial_runs_at_one_worker_only(tmp_path: Path, start: Callable[..., BaseProcess]):
    url, points = f"sqlite:///{tmp_path / 'study.db'}", [2.0**power for power in range(-3, 7)]
    (tmp_path / "runs").mkdir()
    workers = [start(share_points, url, points, 10, tmp_path / "runs", 4) for _ in range(4)]
    assert exit_codes(workers) == [0, 0, 0, 0]
    for name in ("grid", "sampled"):
        trials = optuna.load_study(study_name=name, storage=url).get_trials()
        complete = [trial.params["beta"] for trial in trials if trial.state.name == "COMPLETE"]
        assert len(set(complete)) == len(complete) == 10
        # What two began at once was given up by one of them, and waits in case more is asked for.
        assert {trial.state.name for trial in trials} <= {"COMPLETE", "FAIL", "WAITING"}
        assert name == "sampled" or sorted(complete) == points
    assert len(list((tmp_path / "runs").iterdir())) == 20
    assert len({path.read_text() for path in (tmp_path / "runs").iterdir()}) > 1, "they shared"


def test_a_sweep_killed_again_and_again_reaches_the_same_result(
    root: Path, straight: SweepConfig, start: Callable[..., BaseProcess]
):
    config = SweepConfig(**{**vars(straight), "output_dir": str(root / "killed")})
    finished: dict[Path, int] = {}
    num_kills = 0
    for count in range(30):
        worker = start(run_sweep, config)
        worker.join(timeout=0.05 * 1.3**count)
        worker.kill()
        worker.join()
        assert worker.exitcode in (0, -9)
        assert finished_runs(config).items() >= finished.items(), "what is finished is never touched again"
        finished = finished_runs(config)
        if worker.exitcode == 0:
            break
        num_kills += 1
    assert num_kills > 5
    assert losses(config.output_dir) == losses(straight.output_dir)
    for name in ("beta", "beta-trained"):
        trials = trials_of(config, name)
        complete = [str(trial.params) for trial in trials if trial.state.name == "COMPLETE"]
        assert len(set(complete)) == len(complete)
        assert {trial.state.name for trial in trials} <= {"COMPLETE", "FAIL"}
    assert len(finished) == 8


def test_workers_that_end_at_the_same_time_leave_one_whole_result(
    root: Path, straight: SweepConfig, start: Callable[..., BaseProcess]
):
    config = SweepConfig(**{**vars(straight), "output_dir": str(root / "ended")})
    shutil.copytree(straight.output_dir, config.output_dir)
    finished = finished_runs(config)
    workers = [start(run_sweep, config) for _ in range(4)]
    assert exit_codes(workers) == [0, 0, 0, 0]
    assert finished_runs(config) == finished
    best_beta = json.loads(Path(config.output_dir, "best.json").read_text())["model"]["overrides"]["alibi_beta"]
    assert AutoModelForCausalLM.from_pretrained(f"{config.output_dir}/best_model").config.alibi_beta == best_beta
    assert losses(config.output_dir) == losses(straight.output_dir)
    leftovers = {path.name for path in Path(config.output_dir).iterdir()}
    assert leftovers == {path.name for path in Path(straight.output_dir).iterdir()}


def test_scripts_started_at_once_share_a_study_and_survive_one_of_them(
    root: Path, straight: SweepConfig, environment: dict[str, str]
):
    config = SweepConfig(**{**vars(straight), "output_dir": str(root / "shared")})
    settings = root / "shared.yaml"
    settings.write_text(yaml.safe_dump(vars(config)), encoding="utf-8")
    command = [sys.executable, str(ROOT / "scripts" / "sweep_beta.py"), "--config", str(settings), "--json"]
    workers = {}
    for _ in range(2):
        worker = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        workers[worker.pid] = worker
    victim = workers.pop(pid_in_the_middle_of_a_training(config, list(workers)))
    victim.kill()
    victim.communicate()
    [survivor] = workers.values()
    out, err = survivor.communicate(timeout=PATIENCE_SECONDS)

    assert survivor.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["num_trials"] == 3
    assert losses(config.output_dir) == losses(straight.output_dir)
    assert not [word for word in ("optuna", "ExperimentalWarning", "Traceback") if word in err]
    trials = trials_of(config)
    assert Counter(trial.params["alibi_beta"] for trial in trials) == Counter(BETAS)
    resumed = [training_record(path.parent)["resumed_from"] for path in finished_runs(config)]
    assert any(resumed), "the lost trial went on from its checkpoint"


def pid_in_the_middle_of_a_training(config: SweepConfig, pids: Sequence[int]) -> int:
    """The pid of a worker, stopped while its training has a checkpoint and no end yet; waits for one."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.01)
        for state in Path(config.output_dir).glob("trials/*/checkpoint-*/manifest.json"):  # a whole one
            run = state.parents[1]
            lock = str(run.with_name(f".{run.name}.training.lock"))
            for pid in pids:
                if lock in {file.path for file in psutil.Process(pid).open_files()}:
                    os.kill(pid, signal.SIGSTOP)
                    if state.exists() and not (run / "training.jsonl").exists():
                        return pid
                    os.kill(pid, signal.SIGCONT)
    raise AssertionError("no worker has begun a training")


def test_optuna_dashboard_reads_the_study(straight: SweepConfig):
    dashboard = pytest.importorskip("optuna_dashboard")
    app = dashboard.wsgi(straight.storage_url)

    def get(path: str) -> Any:
        answered: list[str] = []
        environ = {"PATH_INFO": path}
        setup_testing_defaults(environ)
        body = b"".join(app(environ, lambda status, *headers: answered.append(status)))
        assert answered == ["200 OK"]
        return json.loads(body)

    names = {study["study_name"]: study["study_id"] for study in get("/api/studies")["study_summaries"]}
    assert set(names) == {"beta", "beta-trained"}
    trials = get(f"/api/studies/{names['beta']}")["trials"]
    assert [(trial["state"], trial["params"][0]["name"]) for trial in trials] == [("Complete", "alibi_beta")] * 3


@pytest.mark.slow
def test_launched_with_two_processes_it_refuses(root: Path, environment: dict[str, str]):
    output_dir = root / "launched"
    settings = [f"experiment={json.dumps(tiny_experiment(root))}", f"output_dir={output_dir}"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launcher, str(ROOT / "scripts" / "sweep_beta.py")]
    done = subprocess.run(
        [*command, *(part for setting in settings for part in ("--set", setting))],
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert set(lines) == {
        "error: a sweep runs one process per worker: start the command several times instead of launching it"
    }
    assert "exitcode  : 2" in done.stderr
    assert not output_dir.exists()
