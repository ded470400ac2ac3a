"""The Optuna study behind a sweep: one objective under one name, many workers, no trial lost and none run twice."""

import json
import logging
import math
import os
import shutil
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
from filelock import FileLock
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import DatabaseError

from modeling_alibi_gpt.experiments.storage_failures import LastingStorage, is_full, storage_failure
from modeling_alibi_gpt.experiments.storage_urls import shown_url, without_password


HEARTBEAT_SECONDS = 30
GRACE_SECONDS = 120
SQLITE_TIMEOUT_SECONDS = 60
NUM_OPENINGS = 5
_OBJECTIVE = "objective"
_WORKER = "worker"
_CLAIMED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)

Params = dict[str, Any]
Distributions = dict[str, BaseDistribution]
Objective = Callable[[Trial], float]

logger = logging.getLogger(__name__)


def open_study(name: str, storage: str, objective: dict[str, Any]) -> optuna.Study:
    """Create or load the study ``name``, and make sure that it holds trials of just this objective.

    Args:
        name: Study name.
        storage: Optuna storage URL; SQLite files get their folder made.
        objective: What decides a trial's value beside its parameters; JSON values.

    Raises:
        ValueError: The storage cannot be opened, or the name belongs to a study of another objective.
    """
    if storage in ("sqlite://", "sqlite:///:memory:"):
        raise ValueError(
            f"storage {shown_url(storage)} ends with its process; give a file, sqlite:///study.db, or a server"
        )
    study = _open(name, storage)
    is_used = bool(study.get_trials(deepcopy=False, states=_CLAIMED))
    is_same = study.user_attrs.get(_OBJECTIVE) == json.loads(json.dumps(objective))
    if study.directions != [StudyDirection.MINIMIZE] or (is_used and not is_same):
        raise ValueError(
            f"study {name!r} in {shown_url(storage)} is of another objective; choose another study_name, or the "
            "settings it was begun with"
        )
    if not is_same:
        study.set_user_attr(_OBJECTIVE, objective)
    return study


def _open(name: str, storage: str) -> optuna.Study:
    path = Path(storage.removeprefix("sqlite:///")) if storage.startswith("sqlite:///") else None
    if path is not None and not path.exists():
        _make_database(path)
    num_left = NUM_OPENINGS
    while True:
        num_left -= 1
        try:
            with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
                database = LastingStorage(
                    storage,
                    {"connect_args": {"timeout": SQLITE_TIMEOUT_SECONDS}} if path else None,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                )
            return optuna.create_study(
                study_name=name,
                storage=database,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
                direction="minimize",
                load_if_exists=True,
            )
        except Exception as error:  # each database driver has its own classes
            if is_full(error):
                raise storage_failure(error, storage) from error
            # Workers that start together collide in making the tables on a server; a moment later they are there.
            if path or not isinstance(error, DatabaseError | StorageInternalError) or not num_left:
                reason = without_password(str(error), storage)
                raise ValueError(f"storage {shown_url(storage)} cannot be opened as a study: {reason}") from error
            time.sleep(1)


def _make_database(path: Path) -> None:
    """Make an SQLite file with Optuna's tables, whole or not at all.

    A kill between a table and its index would let two studies have one name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():  # another worker was faster
            return
        beside = path.with_name(f".{path.name}.new")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            RDBStorage(f"sqlite:///{beside / path.name}").engine.dispose()
            os.replace(beside / path.name, path)
        finally:
            shutil.rmtree(beside)


def run_grid(
    study: optuna.Study, points: Sequence[Params], distributions: Distributions, objective: Objective
) -> None:
    """Run every point of a grid that no worker has claimed yet; one whose worker died is free again."""

    def choose(claimed: list[Params]) -> Params | None:
        return next((point for point in points if point not in claimed), None)

    def label(trial: Trial) -> str:
        return _label(points.index(trial.params) + 1, len(points), trial)

    _run_claims(study, choose, distributions, objective, label)


def run_sampled(
    study: optuna.Study, name: str, distribution: FloatDistribution, num_trials: int, seed: int, objective: Objective
) -> None:
    """Run values that TPE samples until ``num_trials`` have finished or run at some worker.

    Values whose worker died come first: their trainings go on. The draws depend on the seed and on the trials so far,
    not on the worker.
    """

    def choose(claimed: list[Params]) -> Params | None:
        if len(claimed) >= num_trials:
            return None
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.params not in claimed and distribution.low <= trial.params[name] <= distribution.high:
                return trial.params
        [draw_seed] = np.random.SeedSequence([seed, len(trials)]).generate_state(1)
        sampler = TPESampler(seed=int(draw_seed))
        draft = create_trial(state=TrialState.RUNNING)
        return {name: sampler.sample_independent(study, draft, name, distribution)}

    def label(trial: Trial) -> str:
        trials = study.get_trials(deepcopy=False, states=_CLAIMED)
        return _label(sum(other.number <= trial.number for other in trials), num_trials, trial)

    _run_claims(study, choose, {name: distribution}, objective, label, limit=num_trials)


def _label(place: int, num_trials: int, trial: Trial) -> str:
    shown = " ".join(f"{name.removeprefix('alibi_')} {setting}" for name, setting in trial.params.items())
    return f"[{place}/{num_trials} {shown}]"


def _run_claims(
    study: optuna.Study,
    choose: Callable[[list[Params]], Params | None],
    distributions: Distributions,
    objective: Objective,
    label: Callable[[Trial], str],
    limit: float = math.inf,
) -> None:
    while True:
        release_dead_trials(study)
        point = choose([trial.params for trial in study.get_trials(deepcopy=False, states=_CLAIMED)])
        if point is None:
            return
        trial = _claim(study, point, distributions, limit)
        if trial is not None:
            _run(study, trial, objective, label(trial))


def _claim(study: optuna.Study, point: Params, distributions: Distributions, limit: float) -> Trial | None:
    """Enter a running trial, whole in one transaction; where workers claim the same, the lowest number counts."""
    template = create_trial(
        state=TrialState.RUNNING, params=point, distributions=distributions, user_attrs={_WORKER: _own_identity()}
    )
    study.add_trial(template)
    trials = study.get_trials(deepcopy=False, states=_CLAIMED)
    [mine] = [trial for trial in trials if trial.state == TrialState.RUNNING and _is_own(trial)]
    earlier = [trial.params for trial in trials if trial.number < mine.number]
    if point in earlier or len(earlier) >= limit:
        _tell(study, mine.number, TrialState.FAIL)
        return None
    return Trial(study, mine._trial_id)


def _run(study: optuna.Study, trial: Trial, objective: Objective, label: str) -> None:
    value = None
    logger.info("%s begins", label)
    # What study.optimize does too, but that shows every mistake of a user with its traceback.
    with get_heartbeat_thread(trial._trial_id, study._storage):
        try:
            value, state = objective(trial), TrialState.COMPLETE
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except UpdateFinishedTrialError:
            logger.warning("trial %d was taken from this worker, which gave no sign of life", trial.number)
            return
        except BaseException:
            _tell(study, trial.number, TrialState.FAIL)
            raise
    _tell(study, trial.number, state, value)
    logger.info("%s %s", label, "pruned" if value is None else f"{value:.4f} nats per token")


def _tell(study: optuna.Study, number: int, state: TrialState, value: float | None = None) -> None:
    with suppress(UpdateFinishedTrialError):  # another worker released it in this very moment
        study.tell(number, value, state=state, skip_if_finished=True)


def running_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that live workers are running now."""
    release_dead_trials(study)
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that came to an end by themselves, in the order they began."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def release_dead_trials(study: optuna.Study) -> None:
    """Fail trials whose worker on this machine is gone; those of other machines fail when their heartbeat stops.

    Called between trials, so that one of this very process is what an interrupt left.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _is_own(trial) or (_is_here(trial) and not _is_alive(trial.user_attrs[_WORKER])):
            _tell(study, trial.number, TrialState.FAIL)
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        fail_stale_trials(study)


def _own_identity() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "network_address": uuid.getnode(),  # cloned machines share their name
        "pid": os.getpid(),
        "start_time": psutil.Process().create_time(),
    }


def _is_own(trial: FrozenTrial) -> bool:
    return _is_here(trial) and trial.user_attrs[_WORKER]["pid"] == os.getpid()


def _is_here(trial: FrozenTrial) -> bool:
    own, worker = _own_identity(), trial.user_attrs.get(_WORKER, {})
    return all(worker.get(key) == own[key] for key in ("host", "network_address"))


def _is_alive(worker: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(worker["pid"])
        # A pid may have gone to another process since. The time of boot, from which start times count, is not exact.
        is_same = abs(process.create_time() - worker["start_time"]) < 5
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
