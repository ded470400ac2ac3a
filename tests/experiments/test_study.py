"""The study that workers share: every trial runs once, none is lost, and nobody else's is touched."""

import logging
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.distributions import FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState, create_trial
from sqlalchemy.exc import OperationalError

from modeling_alibi_gpt.experiments import study as beta_study
from modeling_alibi_gpt.experiments.study import (
    finished_trials,
    open_study,
    release_dead_trials,
    run_grid,
    run_sampled,
    running_trials,
)


OBJECTIVE = {"mode": "retrain", "seeds": [0, 1]}
BETA = FloatDistribution(0.125, 8.0, log=True)
POINTS = [{"beta": 0.5}, {"beta": 1.0}, {"beta": 2.0}]


@pytest.fixture(autouse=True)
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def study(url: str) -> optuna.Study:
    return open_study("beta", url, OBJECTIVE)


class Price:
    """An objective with its optimum at 1 that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, trial: Trial) -> float:
        self.asked.append(trial.params["beta"])
        return 1 + math.log(trial.params["beta"]) ** 2


def grid(study: optuna.Study, objective: Callable[[Trial], float], points: list[dict[str, Any]] = POINTS) -> None:
    run_grid(study, points, {"beta": BETA}, objective)


def add_running(study: optuna.Study, beta: float, worker: dict[str, Any]) -> None:
    attributes = {"worker": {**beta_study._own_identity(), **worker}}
    study.add_trial(
        create_trial(
            state=TrialState.RUNNING, params={"beta": beta}, distributions={"beta": BETA}, user_attrs=attributes
        )
    )


def identity(pid: int) -> dict[str, Any]:
    return {"pid": pid, "start_time": psutil.Process(pid).create_time()}


def states(study: optuna.Study) -> list[tuple[float, str]]:
    return [(trial.params["beta"], trial.state.name) for trial in study.get_trials()]


def set_heartbeat(url: str, trial_id: int, seconds_ago: int) -> None:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        database.execute(
            "INSERT INTO trial_heartbeats (trial_id, heartbeat) VALUES (?, datetime('now', ?))",
            (trial_id, f"-{seconds_ago} seconds"),
        )


def test_every_point_runs_once_whatever_else_is_asked_for_later(study: optuna.Study, url: str):
    price = Price()
    grid(study, price)
    grid(open_study("beta", url, OBJECTIVE), price)
    assert price.asked == [0.5, 1.0, 2.0]
    grid(study, price, [*POINTS, {"beta": 4.0}, {"beta": 4.0}])
    assert price.asked == [0.5, 1.0, 2.0, 4.0]
    assert [trial.value for trial in finished_trials(study)] == [1 + math.log(beta) ** 2 for beta in price.asked]
    assert study.best_params == {"beta": 1.0}


def test_a_grid_of_one_point_can_grow(study: optuna.Study):
    price = Price()
    run_grid(study, [{"beta": 1.0}], {"beta": FloatDistribution(1.0, 1.0, log=True)}, price)
    grid(study, price)
    run_sampled(study, "beta", BETA, 4, 0, price)
    assert price.asked[:3] == [1.0, 0.5, 2.0]
    assert len(price.asked) == 4


def test_what_a_live_worker_runs_is_left_to_it(study: optuna.Study):
    add_running(study, 1.0, identity(os.getppid()))
    price = Price()
    grid(study, price)
    assert price.asked == [0.5, 2.0]
    assert [trial.params for trial in running_trials(study)] == [{"beta": 1.0}]


def test_of_two_claims_at_once_the_first_counts(study: optuna.Study, monkeypatch: pytest.MonkeyPatch):
    add_trial, rivals = study.add_trial, [1.0]

    def add_second(trial: optuna.trial.FrozenTrial) -> None:
        if trial.params["beta"] in rivals:
            rivals.clear()
            monkeypatch.setattr(study, "add_trial", add_trial)
            add_running(study, trial.params["beta"], identity(os.getppid()))
        add_trial(trial)

    monkeypatch.setattr(study, "add_trial", add_second)
    price = Price()
    grid(study, price)
    assert price.asked == [0.5, 2.0]
    assert states(study) == [(0.5, "COMPLETE"), (1.0, "RUNNING"), (1.0, "FAIL"), (2.0, "COMPLETE")]


def killed_process(is_waited_for: bool) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process.send_signal(signal.SIGKILL)
    if is_waited_for:
        process.wait()
    else:  # a zombie keeps its pid
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return process


@pytest.mark.parametrize("is_waited_for", [True, False], ids=["gone", "zombie"])
def test_a_dead_workers_point_runs_again(study: optuna.Study, is_waited_for: bool):
    process = killed_process(is_waited_for)
    add_running(study, 1.0, {"pid": process.pid, "start_time": psutil.Process().create_time()})
    if not is_waited_for:
        start_time = psutil.Process(process.pid).create_time()
        study.tell(0, state=TrialState.FAIL)
        add_running(study, 1.0, {"pid": process.pid, "start_time": start_time})
    price = Price()
    grid(study, price)
    process.wait()
    assert price.asked == [0.5, 1.0, 2.0]
    assert not running_trials(study)


def test_a_pid_that_went_to_another_process_is_not_the_worker(study: optuna.Study):
    parent = identity(os.getppid())
    add_running(study, 1.0, {**parent, "start_time": parent["start_time"] - 60})
    # The kernel counts start times from a time of boot that wavers by a second.
    add_running(study, 2.0, {**parent, "start_time": parent["start_time"] - 1})
    assert [trial.params["beta"] for trial in running_trials(study)] == [2.0]


@pytest.mark.parametrize("elsewhere", [{"host": "elsewhere"}, {"network_address": 1}], ids=["name", "cloned"])
def test_trials_of_other_machines_are_released_by_their_heartbeat(study: optuna.Study, url: str, elsewhere: dict):
    gone = killed_process(is_waited_for=True).pid
    for beta in (0.5, 1.0):
        add_running(study, beta, {**elsewhere, "pid": gone})
    alive, silent = study.get_trials()
    set_heartbeat(url, alive._trial_id, beta_study.GRACE_SECONDS - 10)
    set_heartbeat(url, silent._trial_id, beta_study.GRACE_SECONDS + 10)
    price = Price()
    grid(study, price)
    assert price.asked == [1.0, 2.0]
    assert [trial.number for trial in running_trials(study)] == [alive.number]


def test_a_running_trial_has_a_heartbeat(study: optuna.Study, url: str):
    ages = []

    def price(trial: Trial) -> float:
        with sqlite3.connect(url.removeprefix("sqlite:///"), timeout=60) as database:
            while not ages:  # the first beat may come a moment after the start
                query = "SELECT unixepoch('now') - unixepoch(heartbeat) FROM trial_heartbeats WHERE trial_id = ?"
                ages.extend(database.execute(query, (trial._trial_id,)).fetchall())
        return 1.0

    grid(study, price, POINTS[:1])
    assert 0 <= ages[0][0] < beta_study.HEARTBEAT_SECONDS


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("the text is empty"), OSError(28, "disk is full")])
def test_a_trial_that_ends_in_an_error_is_free_again(
    study: optuna.Study, error: BaseException, capfd: pytest.CaptureFixture
):
    def fail_once(trial: Trial) -> float:
        if not price.asked:
            price(trial)
            raise error
        return price(trial)

    price = Price()
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        grid(study, fail_once)
    grid(study, fail_once)
    assert price.asked == [0.5, 0.5, 1.0, 2.0]
    assert states(study)[0] == (0.5, "FAIL")
    assert capfd.readouterr().err == "", "the error is shown once, by the script"


def test_an_interrupt_that_left_its_trial_running_in_this_process_is_no_deadlock(study: optuna.Study):
    add_running(study, 1.0, {})
    price = Price()
    grid(study, price)
    assert price.asked == [0.5, 1.0, 2.0]


def test_a_worker_that_slept_past_its_heartbeat_goes_on(study: optuna.Study, url: str):
    other = open_study("beta", url, OBJECTIVE)
    price = Price()

    def sleep_once(trial: Trial) -> float:
        value = price(trial)
        if len(price.asked) == 1:
            set_heartbeat_back(url, trial._trial_id)
            release_dead_trials(other)
        trial.set_user_attr("details", [value])
        return value

    def set_heartbeat_back(url: str, trial_id: int) -> None:
        """Once the trial's own thread has written its first heartbeat; the next comes long after this test."""
        past = f"-{beta_study.GRACE_SECONDS + 10} seconds"
        change = "UPDATE trial_heartbeats SET heartbeat = datetime('now', ?) WHERE trial_id = ?"
        with sqlite3.connect(url.removeprefix("sqlite:///"), timeout=60) as database:
            while database.execute(change, (past, trial_id)).rowcount == 0:
                database.rollback()
                time.sleep(0.01)

    grid(study, sleep_once)
    assert price.asked == [0.5, 0.5, 1.0, 2.0]
    assert states(study) == [(0.5, "FAIL"), (0.5, "COMPLETE"), (1.0, "COMPLETE"), (2.0, "COMPLETE")]


def test_two_workers_may_release_the_same_trial(study: optuna.Study, monkeypatch: pytest.MonkeyPatch):
    def tell_too_late(*args: Any, **kwargs: Any) -> None:
        raise UpdateFinishedTrialError

    add_running(study, 1.0, {})
    monkeypatch.setattr(study, "tell", tell_too_late)
    release_dead_trials(study)


def test_pruned_trials_are_finished(study: optuna.Study):
    def prune(trial: Trial) -> float:
        price(trial)
        trial.report(5.0, 1)
        raise optuna.TrialPruned

    price = Price()
    grid(study, prune)
    grid(study, prune)
    assert price.asked == [0.5, 1.0, 2.0]
    assert [trial.state for trial in finished_trials(study)] == [TrialState.PRUNED] * 3


def test_progress_says_which_trial_of_how_many(study: optuna.Study, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="modeling_alibi_gpt")
    run_grid(study, [{"beta": 1.0}], {"beta": BETA}, Price())
    run_grid(study, [{"beta": 0.5}, {"beta": 1.0}, {"beta": 2.0}], {"beta": BETA}, Price())
    run_sampled(study, "beta", BETA, 4, 0, Price())
    begun = [message.removesuffix(" begins") for message in caplog.messages if message.endswith(" begins")]
    assert begun[:3] == ["[1/1 beta 1.0]", "[1/3 beta 0.5]", "[3/3 beta 2.0]"]
    assert begun[3].startswith("[4/4 beta ") and len(begun) == 4
    ended = [message for message in caplog.messages if message.endswith(" nats per token")]
    assert [message.partition("]")[0] + "]" for message in ended] == begun


def test_sampled_values_are_as_many_as_asked_for_and_go_on(study: optuna.Study, url: str):
    price = Price()
    run_sampled(study, "beta", BETA, 5, 0, price)
    run_sampled(open_study("beta", url, OBJECTIVE), "beta", BETA, 7, 0, price)
    run_sampled(study, "beta", BETA, 7, 0, price)
    assert len(set(price.asked)) == len(price.asked) == 7
    assert all(0.125 <= beta <= 8 for beta in price.asked)
    assert {str(trial.distributions["beta"]) for trial in study.get_trials()} == {str(BETA)}


def test_draws_are_log_uniform_until_tpe_knows_better(study: optuna.Study):
    price = Price()
    run_sampled(study, "beta", BETA, 40, 0, price)
    distances = [abs(math.log2(beta)) for beta in price.asked]
    # Uniform on the logarithm from -3 to 3, the distance from the optimum is 1.5 in the mean, of variance 0.75.
    assert abs(sum(distances[:10]) / 10 - 1.5) < 3 * math.sqrt(0.75 / 10)
    assert sum(distances[10:]) / 30 < 1.5 - 3 * math.sqrt(0.75 / 30)


def test_draws_depend_on_the_seed_not_on_the_worker(tmp_path: Path):
    asked = []
    for number, seed in enumerate([3, 3, 4]):
        price = Price()
        run_sampled(open_study("beta", f"sqlite:///{tmp_path / str(number)}.db", {}), "beta", BETA, 4, seed, price)
        asked.append(price.asked)
    assert asked[0] == asked[1]
    assert not set(asked[0]) & set(asked[2])


def test_two_workers_that_draw_the_same_value_share_the_last_place(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
):
    price = Price()
    run_sampled(study, "beta", BETA, 2, 0, price)
    add_trial = study.add_trial

    def add_second(trial: optuna.trial.FrozenTrial) -> None:
        monkeypatch.setattr(study, "add_trial", add_trial)
        add_running(study, 1.0, identity(os.getppid()))  # another draw
        add_trial(trial)

    monkeypatch.setattr(study, "add_trial", add_second)
    run_sampled(study, "beta", BETA, 3, 0, price)
    assert len(price.asked) == 2
    assert [state for _, state in states(study)] == ["COMPLETE", "COMPLETE", "RUNNING", "FAIL"]


def test_a_sampled_value_whose_worker_died_comes_first(study: optuna.Study):
    price = Price()
    run_sampled(study, "beta", BETA, 2, 0, price)
    for beta in (3.0, 5.0):
        add_running(study, beta, {"pid": killed_process(is_waited_for=True).pid})
    narrow = FloatDistribution(0.125, 4.0, log=True)
    run_sampled(study, "beta", narrow, 4, 0, price)
    assert price.asked[2] == 3.0
    assert price.asked[3] < 4.0, "the other one is out of the range by now"


def test_a_study_of_another_objective_is_refused(study: optuna.Study, url: str):
    other = {**OBJECTIVE, "seeds": [0]}
    open_study("beta", url, other)
    open_study("beta", url, OBJECTIVE)  # no trial yet: it may still become anything
    grid(study, Price())
    with pytest.raises(ValueError, match="study 'beta' in .* is of another objective; choose another study_name"):
        open_study("beta", url, other)
    open_study("another", url, other)
    open_study("beta", url, OBJECTIVE)


def test_studies_of_other_programs_are_refused(url: str):
    optuna.create_study(study_name="beta", storage=url, direction="maximize")
    with pytest.raises(ValueError, match="another objective"):
        open_study("beta", url, OBJECTIVE)
    foreign = optuna.create_study(study_name="foreign", storage=url)
    foreign.add_trial(create_trial(value=1.0))
    with pytest.raises(ValueError, match="another objective"):
        open_study("foreign", url, OBJECTIVE)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_storage_in_memory_is_none(url: str):
    with pytest.raises(ValueError, match="ends with its process"):
        open_study("beta", url, OBJECTIVE)


@pytest.mark.parametrize("name", ["folder", "text.db", "text.db/study.db", "nonsense://", "oracle://host/name"])
def test_a_storage_that_cannot_be_opened_is_a_users_error(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.db").write_text("not a database, " * 100)
    with pytest.raises((ValueError, OSError), match=re.escape(name.partition("/")[0])):
        open_study("beta", name if ":" in name else f"sqlite:///{tmp_path / name}", OBJECTIVE)


def test_a_database_appears_with_all_its_tables_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def kill(*paths: Path) -> None:
        raise KeyboardInterrupt

    url = f"sqlite:///{tmp_path / 'study.db'}"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(beta_study.os, "replace", kill)
        open_study("beta", url, OBJECTIVE)
    assert not (tmp_path / "study.db").exists()
    for leftover in tmp_path.glob(".study.db.new/*"):
        leftover.write_text("torn")
    grid(open_study("beta", url, OBJECTIVE), Price())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".study.db.lock", "study.db"]


def test_workers_that_collide_in_making_the_tables_of_a_server_try_again(
    study: optuna.Study, url: str, monkeypatch: pytest.MonkeyPatch
):
    collisions = [OperationalError("CREATE TABLE studies", None, Exception("it exists"))] * 2
    storage = beta_study.LastingStorage

    def collide(url: str, *arguments: Any, **settings: Any) -> optuna.storages.RDBStorage:
        if collisions:
            raise collisions.pop()
        return storage(url.replace("sqlite+pysqlite", "sqlite"), *arguments, **settings)

    monkeypatch.setattr(beta_study, "LastingStorage", collide)
    monkeypatch.setattr(beta_study.time, "sleep", lambda seconds: None)
    opened = open_study("beta", url.replace("sqlite", "sqlite+pysqlite"), OBJECTIVE)
    assert opened.study_name == study.study_name


def test_folders_of_a_database_are_made_and_optuna_gives_no_warnings(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = open_study("beta", f"sqlite:///{tmp_path / 'a' / 'b' / 'study.db'}", OBJECTIVE)
        grid(study, Price())
        run_sampled(study, "beta", BETA, 11, 0, Price())
        assert not running_trials(study)
