"""Values that TPE samples: as many as asked for, none twice, and those of errors, interrupts and kills go on first."""

import logging
import math
import multiprocessing
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import Trial, TrialState, create_trial

from modeling_alibi_gpt.experiments import storage as study_storage
from modeling_alibi_gpt.experiments.sampling import run_sampled
from modeling_alibi_gpt.experiments.storage import open_storage
from modeling_alibi_gpt.experiments.study import SharedStudy, open_study


BETA = FloatDistribution(0.125, 8.0, log=True)
PATIENCE_SECONDS = 600  # of a machine with much else to do


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def shared(url: str) -> SharedStudy:
    return opened(url)


def opened(url: str) -> SharedStudy:
    return open_study("beta", open_storage(url), {})


class Price:
    """An objective with its optimum at 1 that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, trial: Trial) -> float:
        self.asked.append(trial.params["beta"])
        return 1 + math.log(trial.params["beta"]) ** 2


def sample(shared: SharedStudy, num_trials: int, objective: Callable[[Trial], float], seed: int = 0) -> None:
    run_sampled(shared, "beta", BETA, num_trials, seed, objective)


def test_an_error_before_the_objective_ends_the_sweep(shared: SharedStudy) -> None:
    """numpy takes no negative seed; the next trial would fail alike."""
    with pytest.raises(ValueError, match="non-negative"):
        sample(shared, 2, Price(), seed=-1)
    assert len(shared.study.trials) == 1


def add_running(shared: SharedStudy, beta: float) -> None:
    shared.study.add_trial(create_trial(state=TrialState.RUNNING, params={"beta": beta}, distributions={"beta": BETA}))


def set_heartbeats_back(url: str) -> None:
    """Make every heartbeat older than the grace period."""
    past = f"-{study_storage.GRACE_SECONDS + 10} seconds"
    with sqlite3.connect(url.removeprefix("sqlite:///"), timeout=60) as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', ?)", (past,))


def states(shared: SharedStudy) -> list[str]:
    return [trial.state.name for trial in shared.study.get_trials()]


def test_values_are_as_many_as_asked_for_and_go_on(shared: SharedStudy, url: str) -> None:
    price = Price()
    sample(shared, 5, price)
    sample(opened(url), 7, price)
    sample(shared, 7, price)
    assert len(set(price.asked)) == len(price.asked) == 7
    assert all(0.125 <= beta <= 8 for beta in price.asked)
    assert states(shared) == ["COMPLETE"] * 7
    assert {str(trial.distributions["beta"]) for trial in shared.study.get_trials()} == {str(BETA)}


def test_draws_are_log_uniform_until_tpe_knows_better(shared: SharedStudy) -> None:
    price = Price()
    sample(shared, 40, price)
    distances = [abs(math.log2(beta)) for beta in price.asked]
    # Uniform on the logarithm from -3 to 3, the distance from the optimum is 1.5 in the mean, of variance 0.75.
    assert abs(sum(distances[:10]) / 10 - 1.5) < 3 * math.sqrt(0.75 / 10)
    assert sum(distances[10:]) / 30 < 1.5 - 3 * math.sqrt(0.75 / 30)


def test_draws_depend_on_the_seed_not_on_the_worker(tmp_path: Path) -> None:
    asked = []
    for number, seed in enumerate([3, 3, 4]):
        price = Price()
        url = f"sqlite:///{tmp_path / str(number)}.db"
        for num_trials in (4,) if number else (1, 2, 3, 4):  # one worker, or four
            sample(opened(url), num_trials, price, seed)
        asked.append(price.asked)
    assert asked[0] == asked[1]
    assert not set(asked[0]) & set(asked[2])


def test_a_trial_that_runs_at_another_worker_counts_and_is_left_to_it(shared: SharedStudy) -> None:
    add_running(shared, 1.0)
    price = Price()
    sample(shared, 3, price)
    assert len(price.asked) == 2 and 1.0 not in price.asked
    assert states(shared) == ["RUNNING", "COMPLETE", "COMPLETE"]


def test_of_two_workers_that_begin_the_last_trial_at_once_the_first_has_it(
    shared: SharedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = shared.study.ask

    def ask_second(*arguments: Any) -> Trial:
        monkeypatch.setattr(shared.study, "ask", ask)
        add_running(shared, 1.0)
        return ask(*arguments)

    price = Price()
    sample(shared, 2, price)
    monkeypatch.setattr(shared.study, "ask", ask_second)
    sample(shared, 3, price)
    assert len(price.asked) == 2
    # The value that was given up waits, in case more are asked for.
    assert states(shared) == ["COMPLETE", "COMPLETE", "RUNNING", "FAIL", "WAITING"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no text"), OSError(28, "disk is full")], ids=repr)
def test_a_value_that_ended_in_an_error_comes_first(
    shared: SharedStudy, error: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    price = Price()

    def fail_once(trial: Trial) -> float:
        value = price(trial)
        if len(price.asked) == 2:
            raise error
        return value

    verbosity = optuna.logging.get_verbosity()
    with pytest.raises(type(error)):
        sample(shared, 3, fail_once)
    sample(shared, 3, fail_once)
    assert len(price.asked) == 4 and price.asked[1] == price.asked[2]
    assert states(shared) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert capfd.readouterr().err == "", "the error is shown once, by the command"
    assert optuna.logging.get_verbosity() == verbosity


def test_a_loss_that_is_not_a_number_ends_the_sweep(shared: SharedStudy) -> None:
    with pytest.raises(ValueError, match="the loss is NaN"):
        sample(shared, 1, lambda trial: math.nan)


def test_a_silent_workers_value_is_run_again_unless_it_is_out_of_the_range(shared: SharedStudy, url: str) -> None:
    for beta in (3.0, 5.0):
        add_running(shared, beta)
    shared.record_heartbeats()
    assert shared.num_running() == 2
    set_heartbeats_back(url)
    price = Price()
    run_sampled(shared, "beta", FloatDistribution(0.125, 4.0, log=True), 2, 0, price)
    assert price.asked[0] == 3.0 and price.asked[1] < 4.0 and len(price.asked) == 2
    assert not shared.num_running()


def test_a_worker_that_slept_past_its_heartbeat_goes_on(shared: SharedStudy, url: str) -> None:
    price = Price()

    def sleep_once(trial: Trial) -> float:
        value = price(trial)
        if len(price.asked) == 1:
            shared.record_heartbeats()
            deadline = time.monotonic() + PATIENCE_SECONDS
            while opened(url).num_running():  # the trial's own thread may write its first heartbeat a moment later
                assert time.monotonic() < deadline
                set_heartbeats_back(url)
        trial.set_user_attr("details", [value])
        return value

    sample(shared, 3, sleep_once)
    assert len(price.asked) == 4 and price.asked[0] == price.asked[1]
    assert states(shared) == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]


def test_pruned_trials_are_finished(shared: SharedStudy) -> None:
    price = Price()

    def prune(trial: Trial) -> float:
        price(trial)
        trial.report(5.0, 1)
        raise optuna.TrialPruned

    sample(shared, 3, prune)
    sample(shared, 3, prune)
    assert len(price.asked) == 3
    assert [trial.state for trial in shared.finished()] == [TrialState.PRUNED] * 3


def test_progress_says_which_trial_of_how_many(shared: SharedStudy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="modeling_alibi_gpt")
    price = Price()
    sample(shared, 1, price)
    sample(shared, 2, price)
    first, second = price.asked
    labels = [f"[1/1 beta {first:g}]", f"[2/2 beta {second:g}]"]
    assert caplog.messages[::2] == [f"{label} begins" for label in labels]
    assert all(message.startswith(label) for label, message in zip(labels, caplog.messages[1::2], strict=True))


def hang(url: str, begun: Any) -> None:
    """A worker that never comes to the end of its first trial."""
    study_storage.HEARTBEAT_SECONDS, study_storage.GRACE_SECONDS = 1, 3

    def wait(trial: Trial) -> float:
        begun.put(trial.params["beta"])
        time.sleep(PATIENCE_SECONDS)
        return 0.0

    sample(opened(url), 2, wait)


def test_a_worker_killed_amid_a_trial_is_replaced_by_another(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("spawn")
    begun = context.Queue()
    victim = context.Process(target=hang, args=(url, begun))
    victim.start()
    beta = begun.get(timeout=PATIENCE_SECONDS)
    monkeypatch.setattr(study_storage, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(study_storage, "GRACE_SECONDS", 3)
    shared, price = opened(url), Price()
    victim.kill()
    victim.join()
    sample(shared, 2, price)
    shared.record_heartbeats()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while shared.num_running():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    sample(shared, 2, price)
    assert len(price.asked) == 2 and beta in price.asked
    assert sorted(states(shared)) == ["COMPLETE", "COMPLETE", "FAIL"]
