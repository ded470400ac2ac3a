"""Failures of a study's storage: reported in one line, after which the study can continue."""

import errno
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from modeling_alibi_gpt.experiments.storage_urls import shown_url, without_password


_PRIMARY_CODE = 0xFF  # of an SQLite error, whose further bits only say where it happened

logger = logging.getLogger(__name__)


class LastingStorage(RDBStorage):
    """Optuna's storage, where a sign of life that cannot be written is left out: it comes from a thread of its own.

    What the trial itself writes afterwards fails for the same reason, where it can be reported.
    """

    def record_heartbeat(self, trial_id: int) -> None:
        try:
            super().record_heartbeat(trial_id)
        except (StorageInternalError, SQLAlchemyError) as error:
            logger.warning("no sign of life could be written: %s", _reason(error))


@contextmanager
def reported_storage_failures(storage: str) -> Iterator[None]:
    """Turn what a study's database fails with into an ``OSError`` of one line.

    Raises:
        OSError: With errno ENOSPC where the disk of an SQLite file is full.
    """
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise storage_failure(error, storage) from error


def storage_failure(error: Exception, storage: str) -> OSError:
    """The ``OSError`` that says what a database failed with, without the statement and its values."""
    if is_full(error):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), shown_url(storage))
    reason = without_password(_reason(error), storage)
    return OSError(f"storage {shown_url(storage)} failed ({reason}); what is in it is whole, run the command again")


def is_full(error: BaseException) -> bool:
    """Whether an error goes back to an SQLite file whose disk is full."""
    driver_error = _driver_error(error)
    code = getattr(driver_error, "sqlite_errorcode", None)
    return code is not None and code & _PRIMARY_CODE == sqlite3.SQLITE_FULL


def _reason(error: BaseException) -> str:
    return str(_driver_error(error) or error)


def _driver_error(error: BaseException | None) -> BaseException | None:
    """What the database's driver raised, below the errors of Optuna and SQLAlchemy."""
    while error is not None:
        if isinstance(error, DBAPIError):
            return error.orig
        error = error.__cause__
    return None
