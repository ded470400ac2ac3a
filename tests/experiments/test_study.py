"""The study of a sweep: results are added once, and those of another objective are refused by name."""

import math
import re
import threading
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import OperationalError

from modeling_alibi_gpt.experiments import storage as study_storage
from modeling_alibi_gpt.experiments.sampling import run_sampled
from modeling_alibi_gpt.experiments.storage import open_storage
from modeling_alibi_gpt.experiments.study import GridTrial, SharedStudy, open_study
from modeling_alibi_gpt.experiments.sweep_config import SweepConfig


OBJECTIVE = {"mode": "retrain", "seeds": [0, 1]}
BETA = FloatDistribution(0.125, 8.0, log=True)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def shared(url: str) -> SharedStudy:
    return opened("beta", url)


def opened(name: str, url: str, objective: dict[str, Any] = OBJECTIVE) -> SharedStudy:
    return open_study(name, open_storage(url), objective)


def price(trial: Any) -> float:
    return 1 + math.log(trial.params["beta"]) ** 2


def add(shared: SharedStudy, beta: float, objective: Any = price) -> str:
    lock = Path(shared.storage.url.removeprefix("sqlite:///")).with_name(".lock")
    return shared.run_point({"beta": beta}, {"beta": BETA}, objective, lock)


def test_a_result_is_added_once_even_where_two_workers_find_it_at_the_same_time(shared: SharedStudy, url: str) -> None:
    both_have_evaluated = threading.Barrier(2)

    def wait_for_the_other(trial: GridTrial) -> float:
        both_have_evaluated.wait(timeout=60)
        return price(trial)

    workers = [
        threading.Thread(target=add, args=(opened("beta", url), 2.0, wait_for_the_other), daemon=True)
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [(trial.params, trial.value) for trial in shared.study.trials] == [({"beta": 2.0}, 1 + math.log(2) ** 2)]


def test_the_study_holds_nothing_of_a_trial_that_has_not_ended(shared: SharedStudy) -> None:
    def fail(trial: GridTrial) -> float:
        trial.set_user_attr("details", 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(shared, 1.0, fail)
    assert not shared.study.trials
    with pytest.raises(ValueError, match="the loss is NaN at {'beta': 1.0}"):
        add(shared, 1.0, lambda trial: math.nan)
    assert not shared.study.trials
    assert add(shared, 1.0) == "1.0000 nats per token"


def test_a_trial_is_pruned_by_those_that_are_complete(shared: SharedStudy) -> None:
    def objective(loss: float) -> Any:
        def evaluate(trial: GridTrial) -> float:
            trial.set_user_attr("details", loss)
            trial.report(loss, 4)
            if trial.should_prune():
                raise optuna.TrialPruned
            return loss

        return evaluate

    results = [
        add(shared, beta, objective(loss)) for beta, loss in ((0.5, 3), (1.0, 2), (2.0, 4), (4.0, 3.5), (8.0, 2.5))
    ]
    assert results == [*(f"{loss}.0000 nats per token" for loss in (3, 2, 4)), "pruned", "2.5000 nats per token"]
    assert [trial.state for trial in shared.finished()][3] == TrialState.PRUNED
    assert [trial.intermediate_values for trial in shared.finished()] == [{4: loss} for loss in (3, 2, 4, 3.5, 2.5)]
    assert shared.finished()[3].user_attrs == {"details": 3.5}


def test_a_grid_of_one_point_can_grow_and_turn_to_sampling(shared: SharedStudy, tmp_path: Path) -> None:
    shared.run_point({"beta": 1.0}, {"beta": FloatDistribution(1.0, 1.0, log=True)}, price, tmp_path / ".lock")
    add(shared, 0.5)
    run_sampled(shared, "beta", BETA, 4, 0, price)
    assert [trial.params["beta"] for trial in shared.finished()][:2] == [1.0, 0.5]
    assert len(shared.finished()) == 4


def test_a_study_of_an_earlier_version_did_not_record_its_tokens(shared: SharedStudy, url: str) -> None:
    add(shared, 2.0)
    assert len(opened("beta", url, OBJECTIVE | {"tokens": "0"}).finished()) == 1
    with pytest.raises(ValueError, match="belongs to another objective, with different values of tokens; choose"):
        opened("beta", url, OBJECTIVE | {"tokens": "1"})


def test_a_study_of_another_objective_is_refused_by_the_settings_that_differ(shared: SharedStudy, url: str) -> None:
    other = {**OBJECTIVE, "seeds": [0]}
    begun = opened("beta", url, other)
    opened("beta", url)  # no trial yet: it may still become anything
    add(shared, 1.0)
    message = "study 'beta' in .* belongs to another objective, with different values of seeds; choose another"
    with pytest.raises(ValueError, match=message):
        opened("beta", url, other)
    with pytest.raises(ValueError, match=message):
        add(begun, 2.0)  # its worker began before the other one had a result
    opened("another", url, other)
    assert len(opened("beta", url).finished()) == 1


def test_a_study_that_began_before_a_setting_existed_is_compared_with_its_default(url: str) -> None:
    experiment = {
        "name": "tiny",
        "position_learning_rate": 1.0,
        "data": {"train_length_tokens": 16, "text_column": "text"},
        "training": {"max_steps": 6},
    }
    objective = {**OBJECTIVE, "experiment": experiment, "dtype": "float32"}
    old = {
        **OBJECTIVE,
        "experiment": {
            **{key: value for key, value in experiment.items() if key != "position_learning_rate"},
            "data": {"train_length_tokens": 16},
        },
    }
    add(opened("beta", url, old), 1.0)
    assert len(opened("beta", url, objective).finished()) == 1
    changed = {**objective, "experiment": {**experiment, "position_learning_rate": 30.0}}
    with pytest.raises(ValueError, match="different values of experiment.position_learning_rate;"):
        opened("beta", url, changed)
    changed = {**objective, "experiment": {**experiment, "data": {"train_length_tokens": 16, "text_column": "body"}}}
    with pytest.raises(ValueError, match="different values of experiment.data.text_column;"):
        opened("beta", url, changed)


def test_studies_of_other_programs_are_refused(url: str) -> None:
    optuna.create_study(study_name="beta", storage=url, direction="maximize")
    with pytest.raises(ValueError, match="another objective"):
        opened("beta", url)
    foreign = optuna.create_study(study_name="foreign", storage=url)
    foreign.add_trial(create_trial(value=1.0))
    with pytest.raises(ValueError, match="another objective"):
        opened("foreign", url)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_storage_in_memory_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="ends with its process"):
        opened("beta", url)


@pytest.mark.parametrize("name", ["what?", "50%20", "{lr}", "a#b@c:d", "ü &"])
def test_a_study_is_in_the_folder_of_its_sweep_whatever_its_name(tmp_path: Path, name: str) -> None:
    config = SweepConfig(mode="posthoc", checkpoint="unused", output_dir=str(tmp_path / name))
    for number in (1, 2):
        study = opened("beta", config.storage_url)
        assert len(study.finished()) == number - 1
        study.run_point({"beta": float(number)}, {"beta": BETA}, price, tmp_path / name / ".lock")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "study.db").is_file()


@pytest.mark.parametrize("name", ["folder", "text.db", "text.db/study.db", "nonsense://", "oracle://host/name"])
def test_a_storage_that_cannot_be_opened_is_a_users_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.db").write_text("not a database, " * 100)
    with pytest.raises((ValueError, OSError), match=re.escape(name.partition("/")[0])):
        opened("beta", name if ":" in name else f"sqlite:///{tmp_path / name}")


def test_a_database_appears_with_all_its_tables_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*paths: Path) -> None:
        raise KeyboardInterrupt

    url = f"sqlite:///{tmp_path / 'study.db'}"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(study_storage.os, "replace", kill)
        open_storage(url)
    assert not (tmp_path / "study.db").exists()
    for leftover in tmp_path.glob(".study.db.new/*"):
        leftover.write_text("torn")
    add(opened("beta", url), 1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".study.db.lock", "study.db"]


def test_workers_that_collide_in_making_the_tables_of_a_server_try_again(
    shared: SharedStudy, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    collisions = [OperationalError("CREATE TABLE studies", None, Exception("it exists"))] * 2
    database = study_storage.LastingStorage

    def collide(url: str, *arguments: Any, **settings: Any) -> optuna.storages.RDBStorage:
        if collisions:
            raise collisions.pop()
        return database(url.replace("sqlite+pysqlite", "sqlite"), *arguments, **settings)

    monkeypatch.setattr(study_storage, "LastingStorage", collide)
    monkeypatch.setattr(study_storage.time, "sleep", lambda seconds: None)
    again = opened("beta", url.replace("sqlite", "sqlite+pysqlite"))
    assert not collisions and again.study.study_name == shared.study.study_name


def test_folders_of_a_database_are_made_and_optuna_gives_no_warnings(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = opened("beta", f"sqlite:///{tmp_path / 'a' / 'b' / 'study.db'}")
        add(shared, 1.0)
        run_sampled(shared, "beta", BETA, 11, 0, price)
        assert not shared.num_running()
