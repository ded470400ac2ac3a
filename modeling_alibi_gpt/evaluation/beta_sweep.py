"""Tuning beta on validation perplexity: by training again, on one checkpoint without training, or by learning it."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import optuna
from accelerate import PartialState
from optuna.trial import FrozenTrial, Trial, TrialState

from modeling_alibi_gpt.evaluation.beta_objectives import Objective, PosthocObjective, RetrainObjective
from modeling_alibi_gpt.evaluation.beta_study import BETA, finished_trials, open_study, run_grid, run_sampled
from modeling_alibi_gpt.evaluation.measurement import MeasurementConfig
from modeling_alibi_gpt.reporting.records import write_json, write_records


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(MeasurementConfig):
    """What ``scripts/sweep_beta.py`` tunes.

    The text settings above are those of ``posthoc``; ``retrain`` reads its experiment's own.

    Attributes:
        mode: ``retrain`` (a training for each beta and seed) or ``posthoc`` (one checkpoint, evaluated at each beta).
        output_dir: Where trials, best configuration, best model and the default study go.
        experiment: For ``retrain``: path of an experiment, or the mapping itself.
        checkpoint: For ``posthoc``: folder of the model.
        length_tokens: For ``posthoc``: window length; null is the training length.
        betas: A grid; null samples ``num_trials`` values between ``beta_low`` and ``beta_high`` by log-uniform TPE.
        beta_low: Smallest sampled beta.
        beta_high: Largest sampled beta.
        num_trials: Sampled betas.
        seeds: Training seeds, the same for every beta, so that betas are compared in pairs.
        sampler_seed: Of TPE; give each of several workers its own.
        pruning: Stop a training whose first seed is above the median of the others at one of its evaluations.
        trained: What is learned for comparison, each with every seed: ``beta``, ``slopes``.
        study_name: Name of the study in the storage.
        storage: Optuna storage URL that workers share; null is an SQLite file in ``output_dir``.
    """

    mode: str = "retrain"
    output_dir: str
    experiment: str | dict[str, Any] | None = None
    checkpoint: str | None = None
    length_tokens: int | None = None
    betas: list[float] | None = None
    beta_low: float = 0.125
    beta_high: float = 8.0
    num_trials: int = 16
    seeds: list[int] = dataclasses.field(default_factory=lambda: [0])
    sampler_seed: int = 0
    pruning: bool = False
    trained: list[str] = dataclasses.field(default_factory=lambda: ["beta"])
    study_name: str = "beta"
    storage: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("retrain", "posthoc"):
            raise ValueError(f"mode must be retrain or posthoc, got {self.mode!r}")
        needed = "experiment" if self.mode == "retrain" else "checkpoint"
        if getattr(self, needed) is None:
            raise ValueError(f"mode {self.mode} needs '{needed}'")
        for beta in [*(self.betas or []), self.beta_low, self.beta_high]:
            if not (math.isfinite(beta) and beta > 0):
                raise ValueError(f"every beta must be a finite number above 0, got {beta}")
        if self.betas == [] or self.beta_low >= self.beta_high:
            raise ValueError("give at least one beta in 'betas', or beta_low below beta_high")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different numbers, at least one, got {self.seeds}")
        if unknown := set(self.trained) - {"beta", "slopes"}:
            raise ValueError(f"trained takes beta and slopes, got {', '.join(sorted(unknown))}")

    @property
    def storage_url(self) -> str:
        return self.storage or f"sqlite:///{Path(self.output_dir) / 'study.db'}"


def run_sweep(config: SweepConfig) -> dict[str, Any]:
    """Run what is left of a sweep and write ``trials.jsonl``, ``best.json`` and ``best_model/`` to ``output_dir``.

    Start the same command several times, on one machine or more with a shared storage, and the trials are shared out.
    A killed worker's trial is run again by any other, or by the same command.

    Returns:
        Best beta, its loss, the number of trials, and the paths written.

    Raises:
        ValueError: A setting cannot be used, or the study belongs to another objective.
    """
    if PartialState().num_processes > 1:
        raise ValueError("a sweep runs one process a worker: start the command several times instead of launching it")
    output_dir = Path(config.output_dir)
    objective: Objective = RetrainObjective(config) if config.mode == "retrain" else PosthocObjective(config)
    study = open_study(
        config.study_name,
        config.storage_url,
        objective.settings,
        seed=config.sampler_seed,
        pruning=config.pruning,
    )
    output_dir.mkdir(parents=True, exist_ok=True)

    def value(trial: Trial, beta: float) -> float:
        nats = objective(trial, beta)
        return sum(nats) / len(nats)

    if config.betas is not None:
        run_grid(study, config.betas, value)
    else:
        run_sampled(study, config.beta_low, config.beta_high, config.num_trials, value)
    records = [_trial_record(config, trial) for trial in finished_trials(study)] + objective.trained_records()
    write_records(output_dir / "trials.jsonl", records)
    return _write_best(output_dir, objective, study, len(records))


def _write_best(output_dir: Path, objective: Objective, study: optuna.Study, num_records: int) -> dict[str, Any]:
    complete = [trial for trial in finished_trials(study) if trial.state == TrialState.COMPLETE]
    if not complete:
        raise ValueError("no trial is complete yet; other workers hold them all, run the command again later")
    best = min(complete, key=lambda trial: trial.value)
    beta = best.params[BETA]
    write_json(output_dir / "best.json", objective.best_experiment(beta))
    objective.save_best_model(beta, output_dir / "best_model")
    return {
        "best_beta": beta,
        "nats_per_token": best.value,
        "perplexity": math.exp(best.value),
        "num_trials": len(complete),
        "num_records": num_records,
        "trials": str(output_dir / "trials.jsonl"),
        "best_config": str(output_dir / "best.json"),
        "best_model": str(output_dir / "best_model"),
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
        "provenance": trial.user_attrs.get("provenance"),
    }
