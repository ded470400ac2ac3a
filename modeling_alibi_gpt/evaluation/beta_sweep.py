"""Tuning beta on validation perplexity: by training again, on one checkpoint without training, or by learning it."""

import dataclasses
import logging
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from modeling_alibi_gpt.evaluation.beta_objectives import (
    BETA,
    TRAINABLE,
    Objective,
    PosthocObjective,
    RetrainObjective,
)
from modeling_alibi_gpt.evaluation.beta_study import (
    finished_trials,
    open_study,
    run_grid,
    run_sampled,
    running_trials,
)
from modeling_alibi_gpt.evaluation.measurement import MeasurementConfig
from modeling_alibi_gpt.evaluation.processes import process_state
from modeling_alibi_gpt.reporting.records import write_json, write_records


POLL_SECONDS = 2
LEARNABLE = ("beta", "slopes")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(MeasurementConfig):
    """What ``scripts/sweep_beta.py`` tunes.

    The text settings above are those of ``posthoc``; ``retrain`` reads its experiment's own.

    Attributes:
        mode: ``retrain`` (a training for each beta and seed) or ``posthoc`` (one checkpoint, evaluated at each beta).
        output_dir: Where trials, best configuration, best model and the default study go.
        experiment: For ``retrain``: path of an experiment, or the mapping itself.
        experiment_overrides: For ``retrain``: ``a.b=value`` assignments laid over the experiment.
        checkpoint: For ``posthoc``: folder of the model.
        length_tokens: For ``posthoc``: window length; null is the training length.
        betas: A grid; null samples ``num_trials`` values between ``beta_low`` and ``beta_high`` by log-uniform TPE.
        beta_low: Smallest sampled beta.
        beta_high: Largest sampled beta.
        num_trials: Sampled betas.
        sampler_seed: Of TPE.
        seeds: For ``retrain``: training seeds, the same for every beta, so that betas are compared in pairs.
        pruning: For ``retrain``: stop a training whose first seed is above the median of the others at one of its
            evaluations.
        trained: For ``retrain``: what is learned for comparison, each with every seed: ``beta``, ``slopes``.
        study_name: Name of the study in the storage; what is learned has a study of its own, ``NAME-trained``.
        storage: Optuna storage URL that workers share; null is an SQLite file in ``output_dir``.
    """

    mode: str = "retrain"
    output_dir: str
    experiment: str | dict[str, Any] | None = None
    experiment_overrides: list[str] = dataclasses.field(default_factory=list)
    checkpoint: str | None = None
    length_tokens: int | None = None
    betas: list[float] | None = None
    beta_low: float = 0.125
    beta_high: float = 8.0
    num_trials: int = 16
    sampler_seed: int = 0
    seeds: list[int] = dataclasses.field(default_factory=lambda: [0])
    pruning: bool = False
    trained: list[str] = dataclasses.field(default_factory=lambda: ["beta"])
    study_name: str = "beta"
    storage: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        inputs = {"retrain": ("experiment", "checkpoint"), "posthoc": ("checkpoint", "experiment")}
        if self.mode not in inputs:
            raise ValueError(f"mode must be retrain or posthoc, got {self.mode!r}")
        needed, unused = inputs[self.mode]
        if getattr(self, needed) is None or getattr(self, unused) is not None:
            raise ValueError(f"mode {self.mode} needs '{needed}' and takes no '{unused}'")
        if self.mode == "posthoc" and self.pruning:
            raise ValueError("pruning stops trainings, and mode posthoc has none: leave it false")
        for beta in [*(self.betas or []), self.beta_low, self.beta_high]:
            if not (math.isfinite(beta) and beta > 0):
                raise ValueError(f"every beta must be a finite number above 0, got {beta}")
        if self.betas == [] or self.beta_low >= self.beta_high:
            raise ValueError("give at least one beta in 'betas', or beta_low below beta_high")
        if self.num_trials < 1:
            raise ValueError(f"num_trials must be at least 1, got {self.num_trials}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different numbers, at least one, got {self.seeds}")
        if unknown := set(self.trained) - set(LEARNABLE):
            raise ValueError(f"trained takes beta and slopes, got {', '.join(sorted(unknown))}")

    @property
    def storage_url(self) -> str:
        return self.storage or f"sqlite:///{Path(self.output_dir) / 'study.db'}"


def run_sweep(config: SweepConfig) -> dict[str, Any]:
    """Run what is left of a sweep and write ``trials.jsonl``, ``best.json`` and ``best_model/`` to ``output_dir``.

    Start the same command several times, on one machine or more with a shared storage, and the trials are shared out.
    A killed worker's trial is run again by any other, or by the same command. Every worker returns once all trials
    have come to their end.

    Returns:
        Best beta, its loss, the number of trials, and the paths written; ``best_model`` is None where the model of
        the best beta lies on another machine.

    Raises:
        ValueError: A setting cannot be used, or the study belongs to another objective.
    """
    if process_state().num_processes > 1:
        raise ValueError("a sweep runs one process a worker: start the command several times instead of launching it")
    objective: Objective = RetrainObjective(config) if config.mode == "retrain" else PosthocObjective(config)
    studies = [open_study(config.study_name, config.storage_url, objective.settings)]
    if objective.trained_points:
        studies.append(open_study(f"{config.study_name}-trained", config.storage_url, objective.settings))
    _run_trials(config, objective, studies)
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(output_dir / ".results.lock"):  # workers end at the same time
        return _write_results(config, objective, studies)


def _run_trials(config: SweepConfig, objective: Objective, studies: Sequence[optuna.Study]) -> None:
    """Run what no other worker has claimed, then wait for the others, in case one of them dies."""
    study, *trained_studies = studies
    values = config.betas or [config.beta_low, config.beta_high]
    beta = FloatDistribution(min(values), max(values), log=True)
    trained = {
        TRAINABLE: CategoricalDistribution(LEARNABLE),
        "seed": IntDistribution(min(config.seeds), max(config.seeds)),
    }
    is_waiting = False
    while True:
        if config.betas is None:
            run_sampled(study, BETA, beta, config.num_trials, config.sampler_seed, objective.price)
        else:
            run_grid(study, [{BETA: float(value)} for value in config.betas], {BETA: beta}, objective.price)
        for trained_study in trained_studies:
            run_grid(trained_study, objective.trained_points, trained, objective.learn)
        num_running = sum(len(running_trials(each)) for each in studies)
        if not num_running:
            return
        if not is_waiting:
            logger.info("waiting for the last %d of other workers", num_running)
        is_waiting = True
        time.sleep(POLL_SECONDS)


def _write_results(config: SweepConfig, objective: Objective, studies: Sequence[optuna.Study]) -> dict[str, Any]:
    output_dir = Path(config.output_dir)
    trials, *trained_trials = map(finished_trials, studies)
    records = [_trial_record(config, trial) for trial in trials]
    records += [_trained_record(trial) for of_study in trained_trials for trial in of_study]
    write_records(output_dir / "trials.jsonl", records)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = min(complete, key=lambda trial: trial.value)
    beta = best.params[BETA]
    write_json(output_dir / "best.json", objective.best_experiment(beta))
    model_dir = output_dir / "best_model"
    has_model = objective.save_best_model(beta, model_dir)
    if not has_model:
        shutil.rmtree(model_dir, ignore_errors=True)  # that of an earlier best
    return {
        "best_beta": beta,
        "nats_per_token": best.value,
        "perplexity": math.exp(best.value),
        "num_trials": len(complete),
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
        "perplexity": math.exp(trial.value) if is_complete else None,
        "provenance": trial.user_attrs["provenance"],
    }


def _trained_record(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "kind": "trained_beta",
        **trial.params,
        **{key: trial.user_attrs[key] for key in ("slopes_by_layer", "beta_by_layer")},
        "nats_per_token": trial.value,
        "perplexity": math.exp(trial.value),
        "provenance": trial.user_attrs["provenance"],
    }
