"""Report failures of a study's storage in one line; the study can continue afterwards."""

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


_PRIMARY_CODE = 0xFF  # mask of the primary result code; the other bits of an SQLite error are details

logger = logging.getLogger(__name__)


class LastingStorage(RDBStorage):
    """Optuna's storage, which skips a heartbeat that cannot be written, because heartbeats run in a separate thread.

    The next write of the trial itself fails for the same reason, where the error can be reported.
    """

    def record_heartbeat(self, trial_id: int) -> None:
        try:
            super().record_heartbeat(trial_id)
        except (StorageInternalError, SQLAlchemyError) as error:
            logger.warning("the heartbeat could not be written: %s", _reason(error))


@contextmanager
def reported_storage_failures(storage: str) -> Iterator[None]:
    """Convert failures of a study's database to an ``OSError`` with a one-line message.

    Raises:
        OSError: The database failed; errno is ENOSPC if the disk of an SQLite file is full.
    """
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise storage_failure(error, storage) from error


def storage_failure(error: Exception, storage: str) -> OSError:
    """An ``OSError`` with the reason of a database failure, without the SQL statement and its values."""
    if is_full(error):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), shown_url(storage))
    reason = without_password(_reason(error), storage)
    return OSError(f"storage {shown_url(storage)} failed ({reason}); its contents are intact, run the command again")


def is_full(error: BaseException) -> bool:
    """Whether an error was caused by a full disk of an SQLite file."""
    driver_error = _driver_error(error)
    code = getattr(driver_error, "sqlite_errorcode", None)
    return code is not None and code & _PRIMARY_CODE == sqlite3.SQLITE_FULL


def _reason(error: BaseException) -> str:
    return str(_driver_error(error) or error)


def _driver_error(error: BaseException | None) -> BaseException | None:
    """The error of the database driver that caused an error of Optuna or SQLAlchemy, if any."""
    while error is not None:
        if isinstance(error, DBAPIError):
            return error.orig
        error = error.__cause__
    return None
