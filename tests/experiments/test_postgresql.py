"""Workers that share a study on a PostgreSQL server, which the test starts for itself."""

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tests.support.sweep_cases import share_points


pytest.importorskip("psycopg2", reason="psycopg2, SQLAlchemy's driver for PostgreSQL, is not installed")
START_SECONDS = 60
UNPRIVILEGED = "nobody"  # a server refuses to be started by root


def program(name: str) -> str | None:
    """A program of PostgreSQL; Debian keeps those of the server out of the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


pytestmark = [
    pytest.mark.integrations,
    pytest.mark.skipif(program("initdb") is None, reason="PostgreSQL is not installed: no initdb"),
]


@pytest.fixture
def server_url() -> Iterator[str]:
    """A new server on a free port of this machine, and a URL of its first database."""
    as_user: dict[str, Any] = {"user": UNPRIVILEGED} if os.geteuid() == 0 else {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not in pytest's folder, into which only its owner may look.
    folder = Path(
        subprocess.run(["mktemp", "-d"], text=True, capture_output=True, check=True, **as_user).stdout.strip()
    )
    try:
        init = [program("initdb"), "--pgdata", folder, "--username", "tester", "--auth", "trust", "--no-sync"]
        subprocess.run(init, check=True, capture_output=True, cwd="/", **as_user)
        settings = ["-D", folder, "-p", str(port), "-k", folder, "-h", "127.0.0.1"]
        with (folder.parent / f"{folder.name}.log").open("w+") as log:
            server = subprocess.Popen([program("postgres"), *settings], stderr=log, cwd="/", **as_user)
            try:
                _wait(port, server)
                yield f"postgresql+psycopg2://tester@127.0.0.1:{port}/postgres"
            finally:
                server.send_signal(signal.SIGINT)  # does not wait for open connections, as this process has
                server.wait()
        Path(log.name).unlink()
    finally:
        shutil.rmtree(folder)


def _wait(port: int, server: subprocess.Popen) -> None:
    """Until the server takes connections."""
    import psycopg2

    deadline = time.monotonic() + START_SECONDS
    while True:
        assert server.poll() is None, f"PostgreSQL ended with {server.returncode}"
        try:
            psycopg2.connect(host="127.0.0.1", port=port, user="tester", dbname="postgres").close()
            return
        except psycopg2.OperationalError:
            assert time.monotonic() < deadline, "no connection"
            time.sleep(0.1)


def test_workers_share_a_study_on_a_server(server_url: str, tmp_path: Path) -> None:
    """Two workers start at once on an empty database: every point is run once, at one of them."""
    points = [2.0**power for power in range(-3, 5)]
    (tmp_path / "runs").mkdir()
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=share_points, args=(server_url, points, 6, tmp_path / "runs", 2)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=300)
    assert [worker.exitcode for worker in workers] == [0, 0]
    for name, num_trials in (("grid", len(points)), ("sampled", 6)):
        trials = optuna.load_study(study_name=name, storage=server_url).get_trials()
        complete = [trial.params["beta"] for trial in trials if trial.state == TrialState.COMPLETE]
        assert len(set(complete)) == len(complete) == num_trials
        assert name == "sampled" or sorted(complete) == points
    assert len(list((tmp_path / "runs").iterdir())) == len(points) + 6
