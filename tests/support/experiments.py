"""Experiments that train in a fraction of a second: a tiny model on a tiny text, with all kinds of dropout."""

import gc
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
import torch
import yaml

from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.training.experiment import ExperimentConfig


WORDS = ("plan", "window", "token", "slope", "bias", "mask", "head", "score", "query", "key", "value", "position")
EXPERIMENT = {
    "name": "tiny",
    "model": {
        "config": {
            "vocab_size": 270,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "embd_pdrop": 0.1,
            "resid_pdrop": 0.1,
            "attention_dropout": 0.1,
        }
    },
    # 14 sequences make 3.5 global batches per epoch.
    "data": {"train_length_tokens": 32, "max_train_tokens": 14 * 32, "max_validation_tokens": 300},
    "global_batch_size": 4,
    "training": {
        "max_steps": 10,
        "logging_steps": 2,
        "save_steps": 4,
        "learning_rate": 1.0e-2,
        "lr_scheduler_type": "constant",
        "seed": 0,
        "disable_tqdm": True,
    },
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Six text files of random words, and the caches of their tokens."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = random.Random(0)
    for number in range(6):
        lines = (" ".join(generator.choices(WORDS, k=8)) for _ in range(60))
        (folder / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "datasets-cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        # Garbage collection over all imported objects would take longer than a run.
        gc.freeze()
        yield folder
        gc.unfreeze()


@pytest.fixture(scope="session")
def write_experiment(corpus: Path) -> Callable[[Path], Path]:
    """Writes the tiny experiment to a folder as ``experiment.yaml``; its run folder is ``run`` in the same folder."""

    def write(folder: Path) -> Path:
        data = {"source": f"text:{corpus}/*.txt", "cache_dir": str(corpus / "tokenizers"), **EXPERIMENT["data"]}
        training = {"output_dir": str(folder / "run"), **EXPERIMENT["training"]}
        path = folder / "experiment.yaml"
        path.write_text(yaml.safe_dump({**EXPERIMENT, "data": data, "training": training}), encoding="utf-8")
        return path

    return write


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread, as in the processes that tests start, so that sums have the same order everywhere."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def experiment_file(write_experiment: Callable[[Path], Path], tmp_path: Path, one_thread: None) -> Path:
    return write_experiment(tmp_path)


@pytest.fixture
def make_experiment(experiment_file: Path) -> Callable[..., ExperimentConfig]:
    """Makes the tiny experiment with ``a.b=value`` settings."""
    return lambda *settings: load_config(ExperimentConfig, str(experiment_file), settings)
