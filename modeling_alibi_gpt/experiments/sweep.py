"""Tune beta for validation loss: by retraining, on one checkpoint without training, or by learning it.

A *point* is the parameters of a trial: a beta, or what is learned and the seed. A *trial* is a point and its loss, as
Optuna stores them in a study. A *job* is what one worker does at a time: a training of a point, or all of them.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
            settings = objective.settings | objective.learned_from
            trained = open_study(f"{config.study_name}-trained", storage, settings)
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
    """The jobs of a grid and of the trainings with learned parameters: one per training.

    With pruning, all trainings of one beta are one job, because the first one decides whether the others start.
    """
    output_dir = Path(config.output_dir)
    lock = output_dir / ".results.lock"
    betas = config.betas or [1.0]
    beta_range = {BETA: FloatDistribution(min(betas), max(betas), log=True)}
    learnable = {
        TRAINABLE: CategoricalDistribution(LEARNABLE),
        "seed": IntDistribution(min(config.seeds), max(config.seeds)),
    }
    planned: list[tuple[str, Path, _Point, list[ExperimentConfig]]] = []
    for beta in map(float, config.betas or ()):
        params = {BETA: beta}
        trainings = objective.trainings(params)
        point = _Point(study, params, beta_range, objective.evaluate_beta, lock, trainings)
        label, folder = f"beta {beta:g}", output_dir / "trials" / f"beta-{beta!r}"
        if config.pruning or not trainings:
            planned.append((label, folder, point, trainings))
        else:
            planned += [
                (f"{label} seed {seed}", folder.with_name(f"{folder.name}-seed-{seed}"), point, [training])
                for seed, training in zip(config.seeds, trainings, strict=True)
            ]
    for params in objective.trained_points:
        assert trained is not None  # run_sweep opens this study if there are such points
        trainings = objective.trainings(params)
        point = _Point(trained, params, learnable, objective.train_beta, lock, trainings)
        kind, seed = params[TRAINABLE], params["seed"]
        folder = output_dir / "trained" / f"{kind}-seed-{seed}"
        planned.append((f"trained {kind} seed {seed}", folder, point, trainings))
    return [
        Job(
            label=f"[{place}/{len(planned)} {label}]",
            folder=folder,
            run=partial(point.run, trainings),
            is_trained=partial(point.is_trained, trainings),
        )
        for place, (label, folder, point, trainings) in enumerate(planned, 1)
    ]


@dataclass(frozen=True)
class _Point:
    """A point with all of its trainings. Its trial is added by the job that finishes the last of them."""

    study: SharedStudy
    params: dict[str, Any]
    distributions: dict[str, Any]
    objective: Callable[[GridTrial], float]
    lock: Path
    trainings: list[ExperimentConfig]

    def is_trained(self, of_job: list[ExperimentConfig]) -> bool:
        """Whether the trainings of a job have finished, or even the trial."""
        seen = self.study.has_seen(self.params)
        return seen or (bool(of_job) and all(map(is_trained, of_job)))

    def run(self, of_job: list[ExperimentConfig]) -> str:
        """Do a job, one of the trainings or all, and describe the result."""
        if self.study.find(self.params) is not None:
            return "is already in the study"
        if of_job == self.trainings:
            return self._add_trial()
        [training] = of_job
        settings = self.study.objective
        tokens = {"tokens": settings["tokens"]} if "tokens" in settings else {}
        record = train_and_clean(training, {"documents": settings["text"], **tokens})
        if all(map(is_trained, self.trainings)):
            self._add_trial()
        return f"{record['validation_nats_per_token']:.4f} nats per token"

    def _add_trial(self) -> str:
        return self.study.run_point(self.params, self.distributions, self.objective, self.lock)


def _write_results(
    config: SweepConfig, objective: Objective, study: SharedStudy, trained: SharedStudy | None
) -> dict[str, Any]:
    output_dir = Path(config.output_dir)
    trials = [_trial_record(config, trial) for trial in study.finished()]
    learned = [_trained_record(config, trial) for trial in (trained.finished() if trained is not None else ())]
    write_records(output_dir / "trials.jsonl", [*trials, *learned])
    chosen = choose_trial(trials)
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
        "choice": describe_choice(trials),
        "num_trials": sum(record["state"] == "COMPLETE" for record in trials),
        "num_records": len(trials) + len(learned),
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
