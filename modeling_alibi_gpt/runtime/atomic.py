"""Folders that appear whole or not at all, and one name for a full disk."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError


FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_LOCK_FILE = ".lock"
_PROBE_BYTES = 2**16


def refuse_taken(target: Path) -> None:
    """Raise a ``ValueError`` unless ``target`` is free: missing, or an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not empty; choose another output_dir")


@contextmanager
def appearing_whole(target: Path) -> Iterator[Path]:
    """A folder beside ``target``, ``.NAME.partial``, which takes its place at the end or vanishes.

    What a killed process left there is removed first.

    Raises:
        ValueError: ``target`` is taken, or another process is writing it.
    """
    refuse_taken(target)
    partial = target.with_name(f".{target.name}.partial")
    made = [parent for parent in target.parents if not parent.exists()]
    partial.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(partial / _LOCK_FILE).acquire(blocking=False)
    except Timeout as error:
        raise ValueError(f"another process is writing {target}; wait for it or end it") from error
    try:
        with lock:
            _empty(partial)
            with full_disk_as_os_error(partial):
                yield partial
            (partial / _LOCK_FILE).unlink()
            if target.exists():
                target.rmdir()
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            if not any(parent.iterdir()):
                parent.rmdir()


def _empty(partial: Path) -> None:
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK_FILE:
            path.unlink()


@contextmanager
def full_disk_as_os_error(folder: Path) -> Iterator[None]:
    """Give a full disk one name, whichever library met it.

    Raises:
        OSError: With errno ENOSPC, where safetensors or torch met a full disk.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if _errno(error) not in FULL_DISK_ERRNOS and not _is_disk_full(folder):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def _errno(error: Exception) -> int | None:
    """The system's number of an error; safetensors has it in its words only, and may have made room again by then."""
    if isinstance(error, OSError):
        return error.errno
    spelt_out = re.search(r"\(os error (\d+)\)", str(error))
    return int(spelt_out[1]) if spelt_out else None


def _is_disk_full(folder: Path) -> bool:
    """Ask the disk itself: safetensors and torch report a failed write in words of their own."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno in FULL_DISK_ERRNOS
    return False
