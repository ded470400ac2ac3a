"""Folders that appear whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from modeling_alibi_gpt.training.checkpoints import full_disk_as_os_error


_LOCK_FILE = ".lock"


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
