"""Tune beta for validation loss: by retraining, on one checkpoint without training, or by learning it."""

import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from modeling_alibi_gpt.experiments.beta_objectives import (
    BETA,
    TRAINABLE,
    Objective,
    PosthocObjective,
    RetrainObjective,
    train_and_clean,
)
from modeling_alibi_gpt.experiments.runner import Job, is_trained, run_jobs
from modeling_alibi_gpt.experiments.sampling import run_sampled
from modeling_alibi_gpt.experiments.storage import open_storage
from modeling_alibi_gpt.experiments.storage_failures import reported_storage_failures
from modeling_alibi_gpt.experiments.study import GridTrial, SharedStudy, open_study
from modeling_alibi_gpt.experiments.sweep_config import LEARNABLE, SweepConfig
from modeling_alibi_gpt.report.beta_choice import describe_choice
from modeling_alibi_gpt.report.statistics import choose_trial
from modeling_alibi_gpt.runtime.atomic import write_json
from modeling_alibi_gpt.runtime.distributed import process_state
from modeling_alibi_gpt.runtime.records import write_records
from modeling_alibi_gpt.training.experiment import ExperimentConfig


POLL_SECONDS = 2

logger = logging.getLogger(__name__)


def run_sweep(config: SweepConfig) -> dict[str, Any]:
    """Run the unfinished part of a sweep and write ``trials.jsonl``, ``best.json`` and ``best_model/``.

    Several workers that start the same command share the trials: workers of a grid meet in ``output_dir``, workers
    that sample meet in the storage. A killed worker's trial continues at any other worker, or when the same command
    runs again; a sampled trial does so ``GRACE_SECONDS`` after the worker's last heartbeat. Every worker returns
    once all trials have ended.

    Returns:
        The best beta (the one nearest to 1 among those whose loss is not distinguishable from the lowest), its loss,
        the betas that it was chosen from, the number of trials, and the paths written; ``best_model`` is None if the
        model of that beta is on another machine.

    Raises:
        ValueError: A setting is invalid, or the study belongs to another objective.
        OSError: The disk is full, or the storage failed; the same command continues once that is fixed.
    """
    if process_state().num_processes > 1:
        raise ValueError(
            "a sweep runs one process per worker: start the command several times instead of launching it"
        )
    objective: Objective = RetrainObjective(config) if config.mode == "retrain" else PosthocObjective(config)
    output_dir = Path(config.output_dir)
    with reported_storage_failures(config.storage_url):
        storage = open_storage(config.storage_url)
        study, trained = open_study(config.study_name, storage, objective.settings), None
        if objective.trained_points:
            trained = open_study(f"{config.study_name}-trained", storage, objective.settings)
        run_trials(config, objective, study, trained)
        output_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(output_dir / ".results.lock"):  # workers may finish at the same time
            return _write_results(config, objective, study, trained)


def run_trials(config: SweepConfig, objective: Objective, study: SharedStudy, trained: SharedStudy | None) -> None:
    """Run the remaining trials. A sampled sweep also waits for other workers, to take over if one of them dies."""
    jobs = _jobs(config, objective, study, trained)
    if config.betas is not None:
        run_jobs(jobs)
        return
    beta = FloatDistribution(config.beta_low, config.beta_high, log=True)

    def sample() -> None:
        run_sampled(study, BETA, beta, config.num_trials, config.sampler_seed, objective.evaluate_beta)

    sample()
    run_jobs(jobs)
    is_waiting = False
    while num_running := study.num_running():
        if not is_waiting:
            logger.info("waiting for the last %d trials of other workers", num_running)
            study.record_heartbeats()
        is_waiting = True
        time.sleep(POLL_SECONDS)
        sample()


def _jobs(config: SweepConfig, objective: Objective, study: SharedStudy, trained: SharedStudy | None) -> list[Job]:
    """The jobs of a grid, one per training, and of the trainings with learned parameters.

    With pruning, all trainings of one beta are one job, because the first one decides whether the others start.
    """
    folder = Path(config.output_dir)
    values = config.betas or [1.0]
    beta_range = {BETA: FloatDistribution(min(values), max(values), log=True)}
    learnable = {
        TRAINABLE: CategoricalDistribution(LEARNABLE),
        "seed": IntDistribution(min(config.seeds), max(config.seeds)),
    }
    cells: list[tuple[str, Path, _Cell]] = []
    for beta in map(float, config.betas or ()):
        point = _Point(study, {BETA: beta}, beta_range, objective.evaluate_beta, folder / ".results.lock")
        trainings = objective.trainings(point.params)
        name, label = folder / "trials" / f"beta-{beta!r}", f"beta {beta:g}"
        if config.pruning or not trainings:
            cells.append((label, name, _Cell(point, trainings, trainings)))
        else:
            cells += [
                (
                    f"{label} seed {seed}",
                    name.with_name(f"{name.name}-seed-{seed}"),
                    _Cell(point, [training], trainings),
                )
                for seed, training in zip(config.seeds, trainings, strict=True)
            ]
    for params in objective.trained_points:
        assert trained is not None  # run_sweep opens this study if there are such points
        point = _Point(trained, params, learnable, objective.train_beta, folder / ".results.lock")
        kind, seed = params[TRAINABLE], params["seed"]
        trainings = objective.trainings(params)
        name = folder / "trained" / f"{kind}-seed-{seed}"
        cells.append((f"trained {kind} seed {seed}", name, _Cell(point, trainings, trainings)))
    return [
        Job(label=f"[{place}/{len(cells)} {label}]", folder=name, run=cell.run, is_trained=cell.is_trained)
        for place, (label, name, cell) in enumerate(cells, 1)
    ]


@dataclass(frozen=True)
class _Point:
    """A trial of a grid, which may take several trainings."""

    study: SharedStudy
    params: dict[str, Any]
    distributions: dict[str, Any]
    objective: Callable[[GridTrial], float]
    lock: Path

    @property
    def is_recorded(self) -> bool:
        return self.study.find(self.params) is not None

    def run(self) -> str:
        return self.study.run_point(self.params, self.distributions, self.objective, self.lock)


@dataclass(frozen=True)
class _Cell:
    """The part of a point that one job runs: some of its trainings, and the trial when all of them have finished."""

    point: _Point
    own: list[ExperimentConfig]
    all: list[ExperimentConfig]

    def is_trained(self) -> bool:
        seen = self.point.study.has_seen(self.point.params)
        return seen or (bool(self.own) and all(map(is_trained, self.own)))

    def run(self) -> str:
        if self.point.is_recorded:
            return "is already in the study"
        if self.own == self.all:
            return self.point.run()
        [training] = self.own
        record = train_and_clean(training, self.point.study.objective["text"])
        if all(map(is_trained, self.all)):
            self.point.run()
        return f"{record['validation_nats_per_token']:.4f} nats per token"


def _write_results(
    config: SweepConfig, objective: Objective, study: SharedStudy, trained: SharedStudy | None
) -> dict[str, Any]:
    output_dir = Path(config.output_dir)
    of_trials = [_trial_record(config, trial) for trial in study.finished()]
    records = list(of_trials)
    records += [_trained_record(config, trial) for trial in (trained.finished() if trained is not None else ())]
    write_records(output_dir / "trials.jsonl", records)
    chosen = choose_trial(of_trials)
    assert chosen is not None  # the sweep is finished, and its first trial is never pruned
    best, choice = chosen
    beta = best["beta"]
    write_json(output_dir / "best.json", objective.best_experiment(beta))
    model_dir = output_dir / "best_model"
    has_model = objective.save_best_model(beta, model_dir)
    if not has_model:
        shutil.rmtree(model_dir, ignore_errors=True)  # the model of an earlier best beta
    return {
        "best_beta": beta,
        "nats_per_token": best["nats_per_token"],
        "perplexity": best["perplexity"],
        "lowest_beta": choice.lowest,
        "level_betas": list(choice.level),
        "choice": describe_choice(of_trials),
        "num_trials": sum(record["state"] == "COMPLETE" for record in of_trials),
        "num_records": len(records),
        "trials": str(output_dir / "trials.jsonl"),
        "best_config": str(output_dir / "best.json"),
        "best_model": str(model_dir) if has_model else None,
    }


def _trial_record(config: SweepConfig, trial: FrozenTrial) -> dict[str, Any]:
    is_complete = trial.state == TrialState.COMPLETE
    return {
        "kind": "beta_trial",
        "mode": config.mode,
        "study": config.study_name,
        "trial": trial.number,
        "state": trial.state.name,
        "beta": trial.params[BETA],
        "seeds": config.seeds if config.mode == "retrain" else [],
        "nats_per_token": trial.value if is_complete else None,
        "nats_per_token_by_seed": trial.user_attrs.get("nats_per_token_by_seed", []),
        "nats_per_token_by_block": trial.user_attrs.get("nats_per_token_by_block"),
        "perplexity": math.exp(trial.value) if is_complete else None,
        "provenance": trial.user_attrs["provenance"],
    }


def _trained_record(config: SweepConfig, trial: FrozenTrial) -> dict[str, Any]:
    return {
        "kind": "trained_beta",
        "study": config.study_name,
        **trial.params,
        **{key: trial.user_attrs[key] for key in ("slopes_by_layer", "beta_by_layer")},
        "nats_per_token": trial.value,
        "perplexity": math.exp(trial.value),
        "provenance": trial.user_attrs["provenance"],
    }
