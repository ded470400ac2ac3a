"""Trainings that sweeps and comparisons share: found by their content, whatever wrote them and wherever they ran."""

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import pytest

from modeling_alibi_gpt.experiments import runner
from modeling_alibi_gpt.experiments.compare import ComparisonConfig, run_comparison
from modeling_alibi_gpt.experiments.sweep import SweepConfig, run_sweep
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from tests.support.sweep_cases import losses, tiny_experiment


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
