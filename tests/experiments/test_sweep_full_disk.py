"""A sweep whose disk fills up: one line, no trial lost, and the same command goes on once there is room."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from optuna.distributions import FloatDistribution
from optuna.trial import Trial
from sqlalchemy import Engine, event

from modeling_alibi_gpt.experiments.sampling import run_sampled
from modeling_alibi_gpt.experiments.storage import open_storage
from modeling_alibi_gpt.experiments.storage_failures import reported_storage_failures
from modeling_alibi_gpt.experiments.study import open_study
from modeling_alibi_gpt.runtime.records import read_records
from tests.bad_input.refusals import script
from tests.support.full_disk import SmallDisk
from tests.support.sweep_cases import tiny_experiment


BETAS = [round(1.05**power, 4) for power in range(24)]
FULL = "error: the disk is full: free some space and run the same command again"


@pytest.fixture(autouse=True)
def cache_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


class Limit:
    """Most pages that an SQLite file may have; beyond them SQLite says that the disk is full."""

    num_pages: int | None = None


@pytest.fixture
def limit() -> Iterator[Limit]:
    limit = Limit()

    def set_limit(connection: Any, _: Any) -> None:
        if limit.num_pages is not None:
            connection.execute(f"PRAGMA max_page_count = {limit.num_pages}")

    event.listen(Engine, "connect", set_limit)
    yield limit
    event.remove(Engine, "connect", set_limit)


@pytest.fixture
def command(make_folder: Callable[[str], str], source: str, tmp_path: Path) -> Callable[[Path], list[str]]:
    """The command line of a sweep without training, into a folder."""

    def make(output_dir: Path) -> list[str]:
        sweep = {
            "mode": "posthoc",
            "checkpoint": make_folder("alibi"),
            "source": source,
            "betas": BETAS,
            "output_dir": str(output_dir),
        }
        path = tmp_path / f"{output_dir.name}.yaml"
        path.write_text(yaml.safe_dump(sweep), encoding="utf-8")
        return ["--config", str(path)]

    return make


def finished(output_dir: Path) -> dict[float, float]:
    """What the study holds, by beta."""
    database = sqlite3.connect(output_dir / "study.db")
    rows = database.execute(
        "SELECT param_value, value FROM trials JOIN trial_params USING (trial_id) JOIN trial_values USING (trial_id) "
        "WHERE state = 'COMPLETE'"
    ).fetchall()
    database.close()
    return dict(rows)


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    code = script("sweep_beta").main(arguments)
    printed = capfd.readouterr().err
    assert code == 2 and FULL in printed.splitlines(), printed  # a progress bar may close after it
    assert "Traceback" not in printed and printed.count("error:") == 1, printed


def goes_on(arguments: list[str], output_dir: Path, kept: dict[float, float]) -> None:
    assert script("sweep_beta").main(arguments) == 0
    losses = finished(output_dir)
    assert sorted(losses) == BETAS and {beta: losses[beta] for beta in kept} == kept
    trials = read_records(output_dir / "trials.jsonl")
    assert sorted((trial["beta"], trial["state"]) for trial in trials) == [(beta, "COMPLETE") for beta in BETAS]


@pytest.mark.parametrize("num_more", [0, 1, 2, 3])
def test_a_database_that_cannot_grow(
    num_more: int,
    command: Callable[[Path], list[str]],
    limit: Limit,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    output_dir = tmp_path / "sweep"
    arguments = command(output_dir)
    limit.num_pages = 10
    refused(arguments, capfd)
    assert not list(output_dir.glob("*.db")) and not list(output_dir.glob(".study.db.new"))

    limit.num_pages = None
    open_study("empty", open_storage(f"sqlite:///{output_dir / 'study.db'}"), {})
    limit.num_pages = (output_dir / "study.db").stat().st_size // 4096 + num_more
    refused(arguments, capfd)
    kept = finished(output_dir)
    limit.num_pages = None
    goes_on(arguments, output_dir, kept)


@pytest.mark.parametrize("free_kib", [0, 72, 132, 150, 168, 184, 228])
def test_a_disk_that_is_full(
    free_kib: int, command: Callable[[Path], list[str]], small_disk: SmallDisk, capfd: pytest.CaptureFixture[str]
) -> None:
    output_dir = small_disk.folder / "sweep"
    arguments = command(output_dir)
    small_disk.leave_free(free_kib * 1024)
    refused(arguments, capfd)
    assert not (output_dir / "best_model").exists() and not (output_dir / ".study.db.new").exists()
    kept = finished(output_dir) if (output_dir / "study.db").exists() else {}
    small_disk.make_room()
    goes_on(arguments, output_dir, kept)


@pytest.mark.parametrize("free_kib", [176, 420, 800])
def test_trainings_go_on_where_the_disk_was_full(
    free_kib: int, small_disk: SmallDisk, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output_dir = small_disk.folder / "sweep"
    sweep = {
        "experiment": tiny_experiment(tmp_path),
        "betas": [0.5, 1.0],
        "trained": [],
        "output_dir": str(output_dir),
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    arguments = ["--config", str(tmp_path / "sweep.yaml")]
    small_disk.leave_free(free_kib * 1024)
    refused(arguments, capfd)
    trained = {path: path.read_bytes() for path in output_dir.glob("trials/*/training.jsonl")}
    assert bool(trained) == (free_kib == 800)
    small_disk.make_room()
    assert script("sweep_beta").main(arguments) == 0
    assert sorted(finished(output_dir)) == [0.5, 1.0]
    assert {path: path.read_bytes() for path in trained} == trained


def test_a_missed_sign_of_life_ends_no_trial(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shared = open_study("study", open_storage(f"sqlite:///{tmp_path / 'study.db'}"), {})

    def objective(trial: Trial) -> float:
        with sqlite3.connect(tmp_path / "study.db", timeout=60) as database:
            database.execute("DROP TABLE trial_heartbeats")
        shared.record_heartbeats()
        return 1.0

    run_sampled(shared, "beta", FloatDistribution(0.5, 2.0), 1, 0, objective)
    assert "the heartbeat could not be written: no such table: trial_heartbeats" in caplog.text
    assert [trial.state.name for trial in shared.study.trials] == ["COMPLETE"]


def test_other_failures_are_one_line_without_statement_or_password(tmp_path: Path) -> None:
    shared = open_study("study", open_storage(f"sqlite:///{tmp_path / 'study.db'}"), {})
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("DROP TABLE trials")
    url = "postgresql://user:such@host/db"
    with pytest.raises(OSError) as failure, reported_storage_failures(url):
        shared.num_running()
    said = "storage postgresql://user:***@host/db failed (no *** table: trials); its contents are intact"
    assert str(failure.value).startswith(said)
