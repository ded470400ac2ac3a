"""Tuning beta on validation perplexity: by training again, on one checkpoint without training, or by learning it."""

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

from modeling_alibi_gpt.experiments.beta_objectives import (
    BETA,
    TRAINABLE,
    Objective,
    PosthocObjective,
    RetrainObjective,
)
from modeling_alibi_gpt.experiments.storage_failures import reported_storage_failures
from modeling_alibi_gpt.experiments.study import (
    finished_trials,
    open_study,
    run_grid,
    run_sampled,
    running_trials,
)
from modeling_alibi_gpt.experiments.sweep_config import LEARNABLE, SweepConfig
from modeling_alibi_gpt.report.beta_choice import describe_choice
from modeling_alibi_gpt.report.statistics import choose_trial
from modeling_alibi_gpt.runtime.atomic import write_json
from modeling_alibi_gpt.runtime.distributed import process_state
from modeling_alibi_gpt.runtime.records import write_records


POLL_SECONDS = 2

logger = logging.getLogger(__name__)


def run_sweep(config: SweepConfig) -> dict[str, Any]:
    """Run what is left of a sweep and write ``trials.jsonl``, ``best.json`` and ``best_model/`` to ``output_dir``.

    Start the same command several times, on one machine or more with a shared storage, and the trials are shared out.
    A killed worker's trial is run again by any other, or by the same command. Every worker returns once all trials
    have come to their end.

    Returns:
        The beta that is taken as best (the nearest to 1 of those that are not told apart from the lowest loss), its
        loss, what it was chosen from, the number of trials, and the paths written; ``best_model`` is None where the
        model of that beta lies on another machine.

    Raises:
        ValueError: A setting cannot be used, or the study belongs to another objective.
        OSError: The disk is full, or the storage failed; the same command goes on once that is mended.
    """
    if process_state().num_processes > 1:
        raise ValueError("a sweep runs one process a worker: start the command several times instead of launching it")
    objective: Objective = RetrainObjective(config) if config.mode == "retrain" else PosthocObjective(config)
    output_dir = Path(config.output_dir)
    with reported_storage_failures(config.storage_url):
        studies = [open_study(config.study_name, config.storage_url, objective.settings)]
        if objective.trained_points:
            studies.append(open_study(f"{config.study_name}-trained", config.storage_url, objective.settings))
        _run_trials(config, objective, studies)
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
            run_sampled(study, BETA, beta, config.num_trials, config.sampler_seed, objective.evaluate_beta)
        else:
            run_grid(study, [{BETA: float(value)} for value in config.betas], {BETA: beta}, objective.evaluate_beta)
        for trained_study in trained_studies:
            run_grid(trained_study, objective.trained_points, trained, objective.train_beta)
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
    of_trials = [_trial_record(config, trial) for trial in trials]
    records = list(of_trials)
    records += [_trained_record(config, trial) for of_study in trained_trials for trial in of_study]
    write_records(output_dir / "trials.jsonl", records)
    chosen = choose_trial(of_trials)
    assert chosen is not None  # only a finished sweep comes here, and its first trial is never pruned
    best, choice = chosen
    beta = best["beta"]
    write_json(output_dir / "best.json", objective.best_experiment(beta))
    model_dir = output_dir / "best_model"
    has_model = objective.save_best_model(beta, model_dir)
    if not has_model:
        shutil.rmtree(model_dir, ignore_errors=True)  # that of an earlier best
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
