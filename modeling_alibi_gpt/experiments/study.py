"""The Optuna study of a sweep: one objective per name, and each result is added once."""

import dataclasses
import datetime
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modeling_alibi_gpt.experiments.storage_urls import shown_url
from modeling_alibi_gpt.experiments.sweep_config import SweepConfig
from modeling_alibi_gpt.runtime.config import with_defaults
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.run_folder import differing_keys


_OBJECTIVE = "objective"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)

Params = dict[str, Any]


class GridTrial:
    """The trial interface for objectives of a grid. The trial is added to the study only when it has ended."""

    def __init__(self, study: optuna.Study, params: Params) -> None:
        self.study = study
        self.params = params
        self.datetime_start = datetime.datetime.now()
        self.user_attrs: dict[str, Any] = {}
        self.intermediate_values: dict[int, float] = {}

    def set_user_attr(self, key: str, value: Any) -> None:
        self.user_attrs[key] = value

    def report(self, value: float, step: int) -> None:
        self.intermediate_values[step] = value

    def should_prune(self) -> bool:
        running = create_trial(state=TrialState.RUNNING, intermediate_values=self.intermediate_values)
        return self.study.pruner.prune(self.study, running)


class PruningCallback(TrainerCallback):
    """Stops a training that Optuna prunes at an evaluation, or that diverges although another beta has finished."""

    def __init__(self, trial: Trial | GridTrial) -> None:
        self.trial = trial

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        self.trial.report(metrics["eval_nats_per_token"], state.global_step)
        if self.trial.should_prune():
            raise optuna.TrialPruned

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        has_diverged = not math.isfinite(kwargs["logs"].get("loss", 0.0))
        if has_diverged and self.trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            raise optuna.TrialPruned


@dataclasses.dataclass(frozen=True)
class SharedStudy:
    """A study of one objective, and the storage that its workers share.

    Attributes:
        study: The study.
        storage: Its storage.
        objective: Settings other than its parameters that determine the value of a trial; JSON values.
    """

    study: optuna.Study
    storage: RDBStorage
    objective: dict[str, Any]
    _seen: dict[Any, FrozenTrial] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def claim(self) -> None:
        """Record the objective in the study.

        Raises:
            ValueError: The study has trials of another objective; the message names the settings that differ.
        """
        known = self.study.user_attrs.get(_OBJECTIVE)
        wanted = json.loads(json.dumps(self.objective))
        where = f"study {self.study.study_name!r} in {shown_url(self.storage.url)} belongs to another objective"
        advice = "choose another study_name, or the settings that it was started with"
        is_used = any(trial.state != TrialState.FAIL for trial in self.study.get_trials(deepcopy=False))
        if self.study.directions != [StudyDirection.MINIMIZE] or (is_used and known is None):
            raise ValueError(f"{where}; {advice}")
        if known is not None and "tokens" in wanted:
            known = {"tokens": wanted["tokens"]} | known  # which an earlier version did not record
        if is_used and known is not None and (differing := differing_keys(_complete(known), _complete(wanted))):
            raise ValueError(f"{where}, with different values of {', '.join(differing)}; {advice}")
        if self.study.user_attrs.get(_OBJECTIVE) != wanted:
            self.study.set_user_attr(_OBJECTIVE, wanted)

    def finished(self) -> list[FrozenTrial]:
        """Complete and pruned trials in the order in which they started; only the first trial of each point."""
        found: dict[Any, FrozenTrial] = {}
        for trial in self.study.get_trials(deepcopy=False, states=FINISHED):
            found.setdefault(_point(trial.params), trial)
        self._seen.update(found)
        return list(found.values())

    def find(self, params: Params) -> FrozenTrial | None:
        """The finished trial of a point, or None."""
        self.finished()
        return self._seen.get(_point(params))

    def has_seen(self, params: Params) -> bool:
        """Whether a point was finished when the storage was last read. Does not read the storage again."""
        return _point(params) in self._seen

    def run_point(
        self,
        params: Params,
        distributions: dict[str, BaseDistribution],
        objective: Callable[[GridTrial], float],
        lock: Path,
    ) -> str:
        """Evaluate a point of a grid and add it to the study, unless another worker has already added it.

        Args:
            params: The point.
            distributions: One distribution per parameter.
            objective: Returns the loss; raises ``optuna.TrialPruned`` to prune the trial.
            lock: File that all workers of one folder lock while they add a trial.

        Returns:
            The result, in words.
        """
        trial, value, state = GridTrial(self.study, params), None, TrialState.COMPLETE
        try:
            value = checked_loss(objective(trial), params)
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        result = create_trial(
            state=state,
            value=value,
            params=params,
            distributions=distributions,
            user_attrs=trial.user_attrs,
            intermediate_values=trial.intermediate_values,
        )
        result.datetime_start = trial.datetime_start
        with FileLock(lock):
            if self.find(params) is None:
                self.claim()
                self.study.add_trial(result)
        return shown_loss(value)

    def num_running(self) -> int:
        """Number of sampled trials that run in live workers; trials without a heartbeat become free for others."""
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            fail_stale_trials(self.study)
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def record_heartbeats(self) -> None:
        """Record a heartbeat for each running trial, because Optuna never fails a trial without a first heartbeat."""
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
            self.storage.record_heartbeat(trial_id)


def open_study(name: str, storage: RDBStorage, objective: dict[str, Any]) -> SharedStudy:
    """Create or load the study ``name``, and check that all of its trials have this objective.

    Args:
        name: Study name.
        storage: As returned by ``open_storage``.
        objective: Settings other than its parameters that determine the value of a trial; JSON values.

    Raises:
        ValueError: The name belongs to a study of another objective.
    """
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
        direction="minimize",
        load_if_exists=True,
    )
    shared = SharedStudy(study, storage, objective)
    shared.claim()
    shared.finished()  # fills the cache of has_seen
    return shared


def checked_loss(value: float, params: Params) -> float:
    """The loss; raises a ValueError if it is NaN."""
    if not math.isnan(value):
        return value
    raise ValueError(f"the loss is NaN at {params}: expected a finite loss; try a lower learning rate")


def shown_loss(nats: float | None) -> str:
    """A loss in words; None is a pruned trial."""
    return "pruned" if nats is None else f"{nats:.4f} nats per token"


def _point(params: Params) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def _complete(objective: dict[str, Any]) -> dict[str, Any]:
    """An objective, with defaults for settings that an earlier version did not have."""
    complete = with_defaults(SweepConfig, objective)
    if isinstance(experiment := complete["experiment"], dict):
        complete["experiment"] = with_defaults(ExperimentConfig, experiment)
    return json.loads(json.dumps(complete))
