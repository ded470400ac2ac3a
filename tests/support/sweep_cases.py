"""A tiny sweep, whose trainings take seconds in total, and the functions of its worker processes."""

import os
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

from optuna.distributions import FloatDistribution
from optuna.trial import Trial

from modeling_alibi_gpt.experiments.runner import Job, run_jobs
from modeling_alibi_gpt.experiments.sampling import run_sampled
from modeling_alibi_gpt.experiments.storage import open_storage
from modeling_alibi_gpt.experiments.study import GridTrial, open_study
from modeling_alibi_gpt.runtime.records import read_records


def tiny_experiment(root: Path, **training: Any) -> dict[str, Any]:
    """An experiment of six steps on a text in ``root``."""
    path = root / "words.txt"
    if not path.exists():
        words = ["plan", "window", "token", "slope", "bias", "score"]
        path.write_text(" ".join(random.Random(0).choices(words, k=1000)), encoding="utf-8")
    model = {"vocab_size": 264, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {
        "name": "tiny",
        "model": {"config": model},
        "data": {
            "source": f"text:{path}",
            "train_length_tokens": 16,
            "cache_dir": str(root / "tokenizers"),
        },
        "global_batch_size": 4,
        "training": {
            "output_dir": str(root / "unused"),
            "max_steps": 6,
            "learning_rate": 0.01,
            "logging_steps": 2,
            "save_steps": 2,
            "report_to": "none",
            **training,
        },
    }


def losses(output_dir: str | Path) -> dict[Any, list[float]]:
    """The losses of a sweep, by beta or by learned parameter and seed; equal for equal sweeps."""
    found: dict[Any, list[float]] = {}
    for record in read_records(Path(output_dir, "trials.jsonl")):
        is_trial = record["kind"] == "beta_trial"
        key = record["beta"] if is_trial else (record["alibi_trainable"], record["seed"])
        assert key not in found
        found[key] = record["nats_per_token_by_seed"] if is_trial else [record["nats_per_token"]]
    return found


def training_record(folder: str | Path) -> dict[str, Any]:
    """The record of the finished training in ``folder``."""
    [record] = [record for record in read_records(Path(folder, "training.jsonl")) if record["kind"] == "training"]
    return record


def share_points(url: str, points: list[float], num_sampled: int, folder: Path, num_workers: int) -> None:
    """A worker whose trials take a quarter of a second, and fail if another runs the same. It awaits the others."""
    (folder.parent / f"started-{os.getpid()}").touch()
    while len(list(folder.parent.glob("started-*"))) < num_workers:
        time.sleep(0.01)

    def price(trial: Trial | GridTrial) -> float:
        beta = trial.params["beta"]
        with open(folder / f"{beta!r}", "x", encoding="utf-8") as file:
            file.write(str(os.getpid()))
        time.sleep(0.25)  # the other workers ask again within this time
        return beta

    distribution = FloatDistribution(0.125, 64, log=True)
    storage = open_storage(url)
    grid = open_study("grid", storage, {})

    def run(beta: float) -> str:
        if grid.find({"beta": beta}):
            return "is in the study"
        return grid.run_point({"beta": beta}, {"beta": distribution}, price, folder.parent / ".results.lock")

    run_jobs(
        [
            Job(label=f"[{beta}]", folder=folder.parent / "jobs" / str(beta), run=partial(run, beta), is_trained=bool)
            for beta in points
        ]
    )
    sampled = open_study("sampled", storage, {})
    while True:
        run_sampled(sampled, "beta", distribution, num_sampled, 0, price)
        if not sampled.num_running():
            return
        time.sleep(0.1)
