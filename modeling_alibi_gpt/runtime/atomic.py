"""Atomic writes of files and folders, and a single error for a full disk."""

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
    """Replace a JSON file atomically, with indentation. Raises ``ValueError`` for NaN or infinity."""
    write_text(path, to_json(obj, indent=2) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Replace a UTF-8 text file atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace a file atomically: write a temporary file in the same folder, then rename it.

    A failure leaves the old file unchanged.
    """
    write_together({Path(path): [data]})


def write_together(files: Mapping[Path, Iterable[bytes]]) -> None:
    """Write all files to temporary paths, sync them to disk, then rename them in the given order.

    The content of a file comes in parts, which may be generated while it is written.

    A full disk raises before the first rename and leaves no partial files or new folders behind. Put files that refer
    to others last.

    Raises:
        OSError: The disk is full, a folder is not writable, or a path is a folder.
    """
    made: list[Path] = []
    staged: list[tuple[Path, Path]] = []
    try:
        for path, data in files.items():
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder; expected a file or a new path")
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
    """Yield a temporary path in the folder of ``path``, for libraries that write files themselves.

    The temporary file replaces ``path`` on success and is removed on failure. Missing parent folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp_path = _tmp_path(path)
    try:
        yield tmp_path
        os.replace(tmp_path, path)
    finally:
        tmp_path.unlink(missing_ok=True)


def to_json(obj: Any, indent: int | None = None) -> str:
    """Serialize to JSON. Raises ``ValueError`` for NaN, infinity and other types; it names the kind of a record."""
    try:
        return json.dumps(obj, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        what = f"a {obj['kind']} record" if isinstance(obj, dict) and "kind" in obj else "a record"
        raise ValueError(f"{what} cannot be written ({error}); write null where a number is not finite") from error


def _tmp_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _make_folder(folder: Path) -> list[Path]:
    """Create a folder and its parents, and return those that were missing, outermost first."""
    missing = [each for each in (*reversed(folder.parents), folder) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def require_empty(target: Path) -> None:
    """Raise ``ValueError`` unless ``target`` is missing or an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not empty; choose another output_dir")


@contextmanager
def atomic_directory(target: Path, *, replaces: bool = False) -> Iterator[Path]:
    """Yield the folder ``.NAME.partial``, which is renamed to ``target`` on success and removed on failure.

    Leftovers of a killed process are removed first.

    Args:
        target: The folder to create.
        replaces: Whether to replace an existing folder with files in it.

    Raises:
        ValueError: ``target`` is not empty, or another process is writing it.
    """
    if not replaces:
        require_empty(target)
    partial = target.with_name(f".{target.name}.partial")
    made = [parent for parent in target.parents if not parent.exists()]
    partial.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(partial / _LOCK_FILE).acquire(blocking=False)
    except Timeout as error:
        raise ValueError(f"another process is writing {target}; wait until it ends, or stop it") from error
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
    """Convert every library's error for a full disk to one ``OSError``.

    Raises:
        OSError: With errno ENOSPC, if safetensors or torch failed because the disk is full.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if _errno(error) not in FULL_DISK_ERRNOS and not _is_disk_full(folder):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def _errno(error: Exception) -> int | None:
    """System error number. safetensors gives it only in its message, and may have freed the space again by then."""
    if isinstance(error, OSError):
        return error.errno
    spelt_out = re.search(r"\(os error (\d+)\)", str(error))
    return int(spelt_out[1]) if spelt_out else None


def _is_disk_full(folder: Path) -> bool:
    """Probe the disk with a write, because safetensors and torch report a full disk as other errors."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno in FULL_DISK_ERRNOS
    return False
