"""The database of a sweep's studies: opened with a heartbeat, and created atomically."""

import os
import shutil
import time
import warnings
from pathlib import Path

from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy import make_url
from sqlalchemy.exc import DatabaseError

from modeling_alibi_gpt.experiments.storage_failures import LastingStorage, is_full, storage_failure
from modeling_alibi_gpt.experiments.storage_urls import shown_url, without_password


HEARTBEAT_SECONDS = 30
GRACE_SECONDS = 120
SQLITE_TIMEOUT_SECONDS = 60
NUM_OPENINGS = 5


def open_storage(url: str) -> RDBStorage:
    """Open an Optuna storage. The folder of an SQLite file is created.

    Raises:
        ValueError: The storage cannot be opened.
        OSError: The disk is full.
    """
    if url in ("sqlite://", "sqlite:///:memory:"):
        raise ValueError(
            f"storage {shown_url(url)} ends with its process: use a file, such as sqlite:///study.db, or a server"
        )
    database = make_url(url).database if url.startswith("sqlite:///") else None
    path = Path(database) if database else None
    if path is not None and not path.exists():
        _make_database(url, path)
    num_left = NUM_OPENINGS
    while True:
        num_left -= 1
        try:
            with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
                return LastingStorage(
                    url,
                    {"connect_args": {"timeout": SQLITE_TIMEOUT_SECONDS}} if path else None,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
                )
        except Exception as error:  # each database driver has its own exception classes
            if is_full(error):
                raise storage_failure(error, url) from error
            # Workers that start together may collide when they create the tables on a server, so try again.
            if path or not isinstance(error, DatabaseError | StorageInternalError) or not num_left:
                reason = without_password(str(error), url)
                raise ValueError(f"storage {shown_url(url)} cannot be opened as a study: {reason}") from error
            time.sleep(1)


def _make_database(url: str, path: Path) -> None:
    """Create an SQLite file with Optuna's tables atomically.

    A kill between creating a table and its index would otherwise allow two studies with one name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():  # another worker has created it
            return
        beside = path.with_name(f".{path.name}.new")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            new = make_url(url).set(database=str(beside / path.name))
            RDBStorage(new.render_as_string(hide_password=False)).engine.dispose()
            os.replace(beside / path.name, path)
        finally:
            shutil.rmtree(beside)
