"""The Optuna study behind a sweep: one objective under one name, many workers, no trial lost and none run twice."""

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.trial import FrozenTrial, Trial, TrialState


BETA = "alibi_beta"
HEARTBEAT_SECONDS = 30
GRACE_SECONDS = 120
_OBJECTIVE_ATTR = "objective"
_WORKER_ATTR = "worker"
_CLAIMED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)

Objective = Callable[[Trial, float], float]


class _ClaimedElsewhereError(Exception):
    """Another worker has this beta."""


def open_study(name: str, storage: str, objective: dict[str, Any], *, seed: int, pruning: bool) -> optuna.Study:
    """Create or load the study ``name``, and make sure that it holds trials of just this objective.

    Args:
        name: Study name.
        storage: Optuna storage URL; SQLite files get their folder made.
        objective: What decides a trial's value beside beta; JSON values.
        seed: Of the sampler.
        pruning: Stop trials whose intermediate loss is above the median of the others.

    Raises:
        ValueError: The storage cannot be opened, or the name belongs to a study of another objective.
    """
    if storage.startswith("sqlite:///"):
        Path(storage.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        study = optuna.create_study(
            study_name=name,
            storage=optuna.storages.RDBStorage(
                storage, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS
            ),
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=3) if pruning else optuna.pruners.NopPruner(),
            direction="minimize",
            load_if_exists=True,
        )
    except Exception as error:  # each database driver has its own classes
        raise ValueError(f"storage {storage} cannot be opened as a study: {error}") from error
    known = study.user_attrs.get(_OBJECTIVE_ATTR)
    if known is None and not study.trials:
        study.set_user_attr(_OBJECTIVE_ATTR, objective)
    elif known != json.loads(json.dumps(objective)) or study.direction != optuna.study.StudyDirection.MINIMIZE:
        raise ValueError(
            f"study {name!r} in {storage} holds trials of another objective; choose another study_name, or the "
            "settings it was begun with"
        )
    return study


def run_grid(study: optuna.Study, betas: Sequence[float], objective: Objective) -> None:
    """Run every beta of a grid that no worker has claimed yet; a beta whose worker died is free again."""

    def claimed(trial: Trial) -> float:
        beta = trial.suggest_float(BETA, min(betas), max(betas), log=min(betas) < max(betas))
        earlier = study.get_trials(deepcopy=False, states=_CLAIMED)[: trial.number]
        if beta not in betas or any(
            other.number < trial.number and other.params.get(BETA) == beta for other in earlier
        ):
            raise _ClaimedElsewhereError
        return _run(trial, beta, objective)

    while True:
        release_dead_trials(study)
        taken = {trial.params.get(BETA) for trial in study.get_trials(deepcopy=False, states=_CLAIMED)}
        free = [beta for beta in betas if beta not in taken]
        if not free:
            return
        # A trial may be waiting already, from a worker that was killed before it asked for it.
        if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.enqueue_trial({BETA: free[0]})
        study.optimize(claimed, n_trials=1, catch=_ClaimedElsewhereError)


def run_sampled(study: optuna.Study, low: float, high: float, num_trials: int, objective: Objective) -> None:
    """Run log-uniform TPE until the study has ``num_trials`` trials, finished or running at some worker."""

    def sampled(trial: Trial) -> float:
        return _run(trial, trial.suggest_float(BETA, low, high, log=True), objective)

    while True:
        release_dead_trials(study)
        if len(study.get_trials(deepcopy=False, states=_CLAIMED)) >= num_trials:
            return
        study.optimize(sampled, n_trials=1)


def release_dead_trials(study: optuna.Study) -> None:
    """Fail trials whose worker on this machine is gone; those of other machines fail when their heartbeat stops."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(_WORKER_ATTR)
        if worker is not None and worker["host"] == socket.gethostname() and not _is_alive(worker):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that came to an end by themselves, in the order they began."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _run(trial: Trial, beta: float, objective: Objective) -> float:
    own = psutil.Process()
    trial.set_user_attr(
        _WORKER_ATTR, {"host": socket.gethostname(), "pid": os.getpid(), "start_time": own.create_time()}
    )
    return objective(trial, beta)


def _is_alive(worker: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(worker["pid"])
        # A pid may have gone to another process since.
        is_same = abs(process.create_time() - worker["start_time"]) < 1.0
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
