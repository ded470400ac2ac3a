"""Sample exactly ``num_trials`` distinct values with TPE, shared by workers through Optuna's storage."""

import logging
import warnings
from collections.abc import Callable

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.samplers import TPESampler
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.study import MaxTrialsCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from modeling_alibi_gpt.experiments.study import FINISHED, SharedStudy, checked_loss, shown_loss


CLAIMED = (*FINISHED, TrialState.RUNNING)

logger = logging.getLogger(__name__)


class _GivenUp(Exception):
    """A trial that this worker must not run, because another trial has its value or its place."""


def run_sampled(
    shared: SharedStudy,
    name: str,
    distribution: FloatDistribution,
    num_trials: int,
    seed: int,
    objective: Callable[[Trial], float],
) -> None:
    """Run values sampled by TPE until ``num_trials`` have finished or are running in some worker.

    Values of trials that failed or were interrupted come first, and their trainings resume. Samples depend on the seed
    and on the trials so far, not on the worker.
    """
    study = shared.study
    errors: list[Exception] = []

    def run(trial: Trial) -> float:
        try:
            label = _claim(study, trial, name, distribution, num_trials, seed)
            logger.info("%s begins", label)
            result = checked_loss(objective(trial), trial.params)
        except optuna.TrialPruned:
            logger.info("%s %s", label, shown_loss(None))
            raise
        except Exception as error:
            errors.append(error)
            raise
        logger.info("%s %s", label, shown_loss(result))
        return result

    def give_back(_: optuna.Study, __: FrozenTrial) -> None:
        _enqueue_left(study, name, distribution)

    callbacks: list[Callable[[optuna.Study, FrozenTrial], None]] = [
        give_back,
        MaxTrialsCallback(num_trials, states=CLAIMED),
    ]
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # optimize logs a traceback for every user error
    try:
        while shared.num_running() + len(study.get_trials(deepcopy=False, states=FINISHED)) < num_trials:
            _enqueue_left(study, name, distribution)
            try:
                study.optimize(run, callbacks=callbacks, catch=(_GivenUp,))
            except (ValueError, UpdateFinishedTrialError) as error:  # optimize cannot end a trial that was taken over
                if any(error is raised and not isinstance(error, UpdateFinishedTrialError) for raised in errors):
                    raise
                logger.warning("another worker has taken over a trial of this worker, which sent no heartbeat")
    finally:
        optuna.logging.set_verbosity(verbosity)


def _claim(
    study: optuna.Study, trial: Trial, name: str, distribution: FloatDistribution, num_trials: int, seed: int
) -> str:
    """Draw the value of a trial and return its label; raise ``_GivenUp`` if this worker must not run it."""
    [draw_seed] = np.random.SeedSequence([seed, trial.number]).generate_state(1)
    study.sampler = TPESampler(seed=int(draw_seed))
    value = trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
    claimed = study.get_trials(deepcopy=False, states=CLAIMED)
    earlier = [other.params for other in claimed if other.number < trial.number]
    is_inside = distribution.low <= value <= distribution.high
    if len(earlier) >= num_trials or trial.params in earlier or not is_inside:
        raise _GivenUp
    return f"[{len(earlier) + 1}/{num_trials} {name.removeprefix('alibi_')} {value:g}]"


def _enqueue_left(study: optuna.Study, name: str, distribution: FloatDistribution) -> None:
    """Queue the values of failed trials that no other trial has, so that interrupted trainings resume."""
    trials = study.get_trials(deepcopy=False)
    taken = {trial.params.get(name) for trial in trials if trial.state != TrialState.FAIL}
    for trial in trials:
        if trial.state != TrialState.FAIL or not trial.params or trial.params[name] in taken:
            continue
        if distribution.low <= trial.params[name] <= distribution.high:
            taken.add(trial.params[name])
            with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
                RetryHeartbeatStaleTrialCallback()(study, trial)
