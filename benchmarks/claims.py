"""Overhead per trial of a shared study, by number of trials.

Several worker processes run one study on an SQLite file with an objective that takes no time. All time is therefore
spent on claiming trials, recording them, and waiting for other workers.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from optuna.trial import Trial

from benchmarks.timing import status_bytes
from modeling_alibi_gpt.experiments.storage import open_storage
from modeling_alibi_gpt.experiments.study import GridTrial, open_study
from modeling_alibi_gpt.experiments.sweep import run_trials
from modeling_alibi_gpt.experiments.sweep_config import SweepConfig
from modeling_alibi_gpt.runtime.records import Record, provenance


NUM_TRIALS, NUM_WORKERS = 1000, 4
SIZES = (10, 100, 1000)
SAMPLINGS = ("grid", "tpe")


def measure_claims(num_trials: int = NUM_TRIALS, num_workers: int = NUM_WORKERS) -> Iterator[Record]:
    """Yield ``claim_time`` records, for a grid and for values sampled by TPE.

    Args:
        num_trials: Number of trials of each study.
        num_workers: Number of processes that share them.
    """
    for sampling in SAMPLINGS:
        with tempfile.TemporaryDirectory(prefix="alibi-gpt-claims-") as folder:
            started = time.perf_counter()
            claims, peak_bytes = _claims(sampling, num_trials, num_workers, folder)
            wall_seconds = time.perf_counter() - started
        for num_finished in (size for size in SIZES if size <= num_trials):
            seconds = claims_at(claims, num_finished)
            yield {
                "kind": "claim_time",
                "sampling": sampling,
                "num_workers": num_workers,
                "num_trials": num_trials,
                "num_finished": num_finished,
                "num_claims": len(seconds),
                "seconds": statistics.median(seconds),
                "wall_seconds": wall_seconds,
                "peak_memory_bytes": peak_bytes,
                "provenance": provenance(seed=0),
            }


def claims_at(claims: list[tuple[int, float]], num_finished: int) -> list[float]:
    """Seconds of the claims made with between half of ``num_finished`` and ``num_finished`` finished trials."""
    return [seconds for number, seconds in claims if num_finished / 2 <= number <= num_finished]


def _claims(sampling: str, num_trials: int, num_workers: int, folder: str) -> tuple[list[tuple[int, float]], int]:
    """Number of finished trials and seconds of each claim, and the peak memory of any worker in bytes."""
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        # All workers start at the same time.
        begin = time.time() + 20
        work = [(sampling, num_trials, folder, begin)] * num_workers
        results = pool.starmap(_work, work, chunksize=1)
    ends = np.sort([end for calls, _ in results for _, end in calls])
    claims = []
    for calls, _ in results:
        for (_, previous_end), (start, _) in zip(calls, calls[1:], strict=False):
            claims.append((int(np.searchsorted(ends, start)), start - previous_end))
    return claims, max(peak_bytes for _, peak_bytes in results)


def _work(sampling: str, num_trials: int, folder: str, begin: float) -> tuple[list[tuple[float, float]], int]:
    """Run a share of the trials. Returns start and end of each objective, and peak memory in bytes."""
    objective = FreeObjective()
    grid = {"betas": np.geomspace(0.125, 8.0, num_trials).tolist()}
    values = grid if sampling == "grid" else {"num_trials": num_trials}
    config = SweepConfig(mode="posthoc", checkpoint="unused", output_dir=folder, **values)
    study = open_study(config.study_name, open_storage(config.storage_url), objective.settings)
    time.sleep(max(0.0, begin - time.time()))
    run_trials(config, objective, study, None)
    return objective.calls, status_bytes("VmHWM")


class FreeObjective:
    """An objective that takes no time."""

    settings: dict[str, Any] = {"mode": "posthoc"}
    trained_points: list[dict[str, Any]] = []

    def __init__(self) -> None:
        self.calls: list[tuple[float, float]] = []

    def trainings(self, params: dict[str, Any]) -> list[Any]:
        return []

    def evaluate_beta(self, trial: Trial | GridTrial) -> float:
        start = time.time()
        loss = float(np.log(trial.params["alibi_beta"]) ** 2)
        self.calls.append((start, time.time()))
        return loss
