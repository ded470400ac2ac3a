"""Atomic files and folders, which appear completely or not at all, and one error for a full disk."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError


FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_LOCK_FILE = ".lock"
_PROBE_BYTES = 2**16


def write_json(path: str | Path, obj: Any) -> None:
    """Replace a JSON file atomically, with indentation. Raises ``ValueError`` on NaN or infinity."""
    write_text(path, to_json(obj, indent=2) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Replace a UTF-8 text file atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace a file atomically: write a temporary file in the same folder, then rename it. A failure leaves only the
    old file.
    """
    write_together({Path(path): [data]})


def write_together(files: Mapping[Path, Iterable[bytes]]) -> None:
    """Write every file beside its place, wait until all are on the disk, then rename them in the order given.

    The content of a file comes in parts, and may be made while it is written: one file is held at a time.

    What can fail for want of room fails before the first of them is renamed, and then leaves nothing behind: neither
    a part of a file nor a folder that was not there. Put last what links to the others.

    Raises:
        OSError: The disk is full, a folder cannot be written, or a folder is in the place of a file.
    """
    made: list[Path] = []
    staged: list[tuple[Path, Path]] = []
    try:
        for path, data in files.items():
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder; expected a file there, or nothing")
            made += _make_folder(path.parent)
            tmp_path = _tmp_path(path)
            staged.append((tmp_path, path))
            with tmp_path.open("wb") as file:
                file.writelines(data)
                file.flush()
                os.fsync(file.fileno())
        for tmp_path, path in staged:
            os.replace(tmp_path, path)
    except BaseException:
        for tmp_path, _ in staged:
            tmp_path.unlink(missing_ok=True)
        for folder in reversed(made):
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, for libraries that write files themselves.

    The file takes the place of ``path`` at the end, or vanishes; a missing parent folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp_path = _tmp_path(path)
    try:
        yield tmp_path
        os.replace(tmp_path, path)
    finally:
        tmp_path.unlink(missing_ok=True)


def to_json(obj: Any, indent: int | None = None) -> str:
    """JSON of finite numbers alone. Raises ``ValueError``, which names the kind of a record, on anything else."""
    try:
        return json.dumps(obj, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        what = f"a {obj['kind']} record" if isinstance(obj, dict) and "kind" in obj else "a record"
        raise ValueError(f"{what} cannot be written ({error}); write null where a number is not finite") from error


def _tmp_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it; the ones that were not there, outermost first."""
    missing = [each for each in (*reversed(folder.parents), folder) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def require_empty(target: Path) -> None:
    """Raise a ``ValueError`` unless ``target`` is free: missing, or an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not empty; choose another output_dir")


@contextmanager
def atomic_directory(target: Path, *, replaces: bool = False) -> Iterator[Path]:
    """A folder beside ``target``, ``.NAME.partial``, which takes its place at the end or vanishes.

    What a killed process left there is removed first.

    Args:
        target: The folder to make.
        replaces: Whether it takes the place of a folder with files in it.

    Raises:
        ValueError: ``target`` is taken, or another process is writing it.
    """
    if not replaces:
        require_empty(target)
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
                shutil.rmtree(target) if replaces else target.rmdir()
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
