"""Sweeps that tests start from: a finished one, and one on a checkpoint."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from modeling_alibi_gpt.experiments import runner
from modeling_alibi_gpt.experiments.sweep import SweepConfig, run_sweep
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from tests.support.sweep_cases import tiny_experiment


@pytest.fixture(scope="module")
def one_thread_and_a_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    num_threads, cache = torch.get_num_threads(), datasets.config.HF_DATASETS_CACHE
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets-cache")
    yield
    torch.set_num_threads(num_threads)
    datasets.config.HF_DATASETS_CACHE = cache


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def finished(root: Path, one_thread_and_a_cache: None) -> SweepConfig:
    """A finished sweep of two betas and two seeds, with learned beta and slopes, best.json and the best model."""
    config = SweepConfig(
        output_dir=str(root / "finished"),
        experiment=tiny_experiment(root),
        betas=[0.5, 1],
        seeds=[0, 1],
        trained=["beta", "slopes"],
    )
    run_sweep(config)
    return config


@pytest.fixture
def copied(finished: SweepConfig, tmp_path: Path) -> SweepConfig:
    """A separate copy of the finished sweep, for tests that continue it."""
    shutil.copytree(finished.output_dir, tmp_path / "copied")
    return dataclasses.replace(finished, output_dir=str(tmp_path / "copied"))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders of the trainings that are started."""
    begun: list[str] = []
    train = runner.train

    def count(config: ExperimentConfig, **kwargs: Any) -> dict[str, Any]:
        if not (Path(config.training["output_dir"]) / "training.jsonl").exists():
            begun.append(Path(config.training["output_dir"]).name)
        return train(config, **kwargs)

    monkeypatch.setattr(runner, "train", count)
    return begun


@pytest.fixture
def posthoc(make_folder: Callable[[str], str], source: str, tmp_path: Path) -> SweepConfig:
    return SweepConfig(
        mode="posthoc",
        output_dir=str(tmp_path / "posthoc"),
        checkpoint=make_folder("alibi"),
        source=source,
        betas=[0.5, 1, 4],
    )
