"""Trainings that sweeps and comparisons share: found by their content, whatever wrote them and wherever they ran."""

import dataclasses
import logging
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from modeling_alibi_gpt.experiments import runner
from modeling_alibi_gpt.experiments.compare import ComparisonConfig, run_comparison
from modeling_alibi_gpt.experiments.sweep import SweepConfig, run_sweep
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from tests.support.sweep_cases import losses, tiny_experiment, training_record


PATIENCE_SECONDS = 600  # of a machine with much else to do


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one_thread: None) -> list[str]:
    """The seeds of the trainings that are begun, in their order."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))
    begun: list[str] = []
    train = runner.train

    def count(config: ExperimentConfig, **kwargs: Any) -> dict[str, Any]:
        if not Path(config.training["output_dir"], "training.jsonl").exists():
            begun.append(config.training["seed"])
        return train(config, **kwargs)

    monkeypatch.setattr(runner, "train", count)
    return begun


def test_a_comparison_finds_the_trainings_of_a_sweep_and_trains_the_rest(trainings: list[str], tmp_path: Path) -> None:
    experiment, trainings_dir = tiny_experiment(tmp_path), str(tmp_path / "trainings")
    sweep = SweepConfig(
        output_dir=str(tmp_path / "sweep"),
        experiment=experiment,
        betas=[1, 2],
        seeds=[0, 1],
        trainings_dir=trainings_dir,
    )
    run_sweep(sweep)
    assert trainings == [0, 1, 0, 1, 0, 1]
    alone = dataclasses.replace(sweep, output_dir=str(tmp_path / "alone"), trainings_dir=None)
    run_sweep(alone)
    assert losses(sweep.output_dir) == losses(alone.output_dir), "a training is the same wherever it lies"

    (tmp_path / "elsewhere").mkdir()
    comparison = ComparisonConfig(
        name="reuse",
        experiment=tiny_experiment(tmp_path / "elsewhere"),  # the same text at another place
        variants={
            "plain": {},
            "two": {"alibi_beta": 2},
            "learned": {"alibi_trainable": "beta"},
            "four": {"alibi_beta": 4},
        },
        reference="plain",
        seeds=[0, 1],
        evaluation={"source": experiment["data"]["source"], "max_tokens": 100, "lengths_tokens": [16]},
        output_dir=str(tmp_path / "comparison"),
        trainings_dir=trainings_dir,
    )
    trainings.clear()
    records = [record for record in run_comparison(comparison) if record["kind"] == "training"]
    assert trainings == [0, 1], "of beta 4, which the sweep did not train"
    found = losses(sweep.output_dir)
    nats = {(record["name"], record["seed"]): record["validation_nats_per_token"] for record in records}
    assert len(nats) == 8
    for seed in (0, 1):
        assert nats["plain", seed] == found[1.0][seed]
        assert nats["two", seed] == found[2.0][seed]
        assert nats["learned", seed] == found["beta", seed][0]


@pytest.mark.parametrize("change", [{"learning_rate": 0.02}, {"seed": 1}, {"max_steps": 7}])
def test_trainings_that_differ_have_folders_of_their_own(change: dict[str, Any], tmp_path: Path) -> None:
    one = ExperimentConfig(**shared_sections(tiny_experiment(tmp_path, seed=0)))
    other = ExperimentConfig(**shared_sections(tiny_experiment(tmp_path, **{"seed": 0, **change})))
    folders = [runner.shared_experiment(each, "trainings", "text").training["output_dir"] for each in (one, other)]
    assert folders[0] != folders[1]
    assert folders[0] != runner.shared_experiment(one, "trainings", "another text").training["output_dir"]
    renamed = dataclasses.replace(one, name="renamed", training={**one.training, "output_dir": "elsewhere"})
    assert runner.shared_experiment(renamed, "trainings", "text").training["output_dir"] == folders[0]


def shared_sections(values: dict[str, Any]) -> dict[str, Any]:
    sections = {"model": runner.ModelSection(**values["model"]), "data": runner.DataSection(**values["data"])}
    return values | sections


def comparison_of(experiment: dict[str, Any], output_dir: Path, trainings_dir: Path) -> ComparisonConfig:
    return ComparisonConfig(
        name="first",
        experiment=experiment,
        variants={"plain": {}, "two": {"alibi_beta": 2}},
        reference="plain",
        seeds=[0, 1],
        evaluation={"source": experiment["data"]["source"], "max_tokens": 100, "lengths_tokens": [16]},
        output_dir=str(output_dir),
        trainings_dir=str(trainings_dir),
    )


def test_a_sweep_finds_the_trainings_of_a_comparison_and_trains_nothing(trainings: list[str], tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path)
    records = run_comparison(comparison_of(experiment, tmp_path / "comparison", tmp_path / "trainings"))
    assert trainings == [0, 0, 1, 1]
    trainings.clear()
    sweep = SweepConfig(
        output_dir=str(tmp_path / "sweep"),
        experiment=experiment,
        betas=[1, 2],
        seeds=[0, 1],
        trained=[],
        trainings_dir=str(tmp_path / "trainings"),
    )
    run_sweep(sweep)
    assert trainings == []
    nats = {(r["variant"], r["seed"]): r["validation_nats_per_token"] for r in records if r["kind"] == "training"}
    found = losses(sweep.output_dir)
    assert found == {beta: [nats[name, seed] for seed in (0, 1)] for beta, name in ((1.0, "plain"), (2.0, "two"))}


def test_a_shared_training_that_was_killed_goes_on_in_another_command(tmp_path: Path, trainings: list[str]) -> None:
    experiment, folder = tiny_experiment(tmp_path, max_steps=400), tmp_path / "trainings"
    context = multiprocessing.get_context("spawn")
    comparison = comparison_of(experiment, tmp_path / "comparison", folder)
    victim = context.Process(target=run_comparison, args=(comparison,))
    victim.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not list(folder.glob("*/checkpoint-*/manifest.json")):
        assert time.monotonic() < deadline and victim.is_alive()
        time.sleep(0.01)
    victim.kill()
    victim.join()
    [begun] = [path for path in folder.iterdir() if path.is_dir()]
    assert not (begun / "training.jsonl").exists()
    sweep = SweepConfig(
        output_dir=str(tmp_path / "sweep"), experiment=experiment, betas=[1], trained=[], trainings_dir=str(folder)
    )
    run_sweep(sweep)
    assert training_record(begun)["resumed_from"] is not None


def train_when_told(config: ExperimentConfig, start: Any, folder: Path) -> None:
    """Train, and leave a file that says who did; one thread, as in the test itself."""
    torch.set_num_threads(1)
    train = runner.train

    def note(experiment: ExperimentConfig, **kwargs: Any) -> dict[str, Any]:
        if not runner.is_trained(experiment):
            (folder / f"{os.getpid()}.trained").touch()
        return train(experiment, **kwargs)

    runner.train = note
    start.wait(timeout=PATIENCE_SECONDS)
    record = runner.train_once(config)
    (folder / f"{os.getpid()}.found").write_text(str(record["validation_nats_per_token"]), encoding="utf-8")


def test_of_two_processes_that_want_one_training_one_trains_and_the_other_finds_it(tmp_path: Path) -> None:
    sections = shared_sections(tiny_experiment(tmp_path))
    experiment = runner.shared_experiment(ExperimentConfig(**sections), str(tmp_path / "trainings"), "text")
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    workers = [context.Process(target=train_when_told, args=(experiment, start, tmp_path)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=PATIENCE_SECONDS)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(list(tmp_path.glob("*.trained"))) == 1
    found = [path.read_text() for path in tmp_path.glob("*.found")]
    assert len(found) == 2 and found[0] == found[1]


def test_a_training_that_another_began_with_the_same_text_elsewhere_is_found(tmp_path: Path) -> None:
    first = ExperimentConfig(**shared_sections(tiny_experiment(tmp_path)))
    kind, path = first.data.source.split(":", 1)
    (tmp_path / "copy").mkdir()
    copy = shutil.copy(path, tmp_path / "copy")
    second = dataclasses.replace(first, data=dataclasses.replace(first.data, source=f"{kind}:{copy}"))
    planned = [runner.shared_experiment(each, str(tmp_path / "trainings"), "text") for each in (first, second)]
    assert planned[0].data != planned[1].data
    records = [runner.train_once(each) for each in planned]
    assert records[0] == records[1]


def test_progress_tells_how_long_the_rest_takes_by_the_jobs_that_were_trained_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="modeling_alibi_gpt")
    now, ended = [0.0], {"found"}
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])

    def job(name: str, seconds: float) -> runner.Job:
        def run() -> str:
            now[0] += seconds
            ended.add(name)
            return "done"

        return runner.Job(label=f"[{name}]", folder=tmp_path / name, run=run, is_trained=lambda: name in ended)

    runner.run_jobs([job("found", 1), job("one", 60), job("two", 120), job("three", 60)])
    assert caplog.messages[1::2] == [
        "[found] done",
        "[one] done, ETA 0:02:00 for the 2 left",
        "[two] done, ETA 0:01:30 for the 1 left",
        "[three] done",
    ]
