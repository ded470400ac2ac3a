"""Measurement records: validation, crash-safe JSON Lines files, and provenance."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, get_args

from pydantic import ValidationError
from pydantic_core import from_json

from modeling_alibi_gpt.runtime import benchmark_types, bias_types, context_types, record_types
from modeling_alibi_gpt.runtime.atomic import to_json, write_bytes
from modeling_alibi_gpt.runtime.record_types import RecordType


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


Record = dict[str, Any]
# Schemas by kind.
RECORD_TYPES: dict[str, type[RecordType]] = {
    get_args(schema.model_fields["kind"].annotation)[0]: schema
    for module in (record_types, bias_types, benchmark_types, context_types)
    for schema in vars(module).values()
    if isinstance(schema, type) and issubclass(schema, RecordType) and get_args(schema.model_fields["kind"].annotation)
}

_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "optuna", "tokenizers", "numpy")
_SHARED = {"versions", "hardware"}
_SOURCE_FILE = Path(__file__).resolve()
COMMIT_VARIABLE = "ALIBI_GPT_COMMIT"


def check_record(record: Record) -> None:
    """Raise ``ValueError``, which names the field, unless ``record`` matches the schema of its kind."""
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in RECORD_TYPES:
        raise ValueError(f"got a record of kind {kind!r}; expected one of {', '.join(RECORD_TYPES)}")
    try:
        RECORD_TYPES[kind].model_validate(record)
    except ValidationError as error:
        raise ValueError(_complaint(record, error)) from error


def _complaint(record: Record, error: ValidationError) -> str:
    """Describe the first problem, or all missing fields, in one line."""
    errors = error.errors(include_url=False)
    missing = [str(each["loc"][0]) for each in errors if each["type"] == "missing" and len(each["loc"]) == 1]
    if missing:
        return f"a record of kind {record['kind']} needs {', '.join(missing)}; got only {', '.join(record)}"
    first = errors[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    field, *within = first["loc"]
    if first["type"] == "extra_forbidden" and not within:
        known = ", ".join(RECORD_TYPES[record["kind"]].model_fields)
        return f"'{field}' is not a field of a record of kind {record['kind']}; expected {known}"
    expected = {
        "missing": f"an object with {first['loc'][-1]}",
        "extra_forbidden": f"an object without {first['loc'][-1]}",
        "model_type": "an object",
    }.get(first["type"], first["msg"].removeprefix("Input should be "))
    where = f" at {'.'.join(map(str, within))}" if within else ""
    return f"'{field}' must be {expected}{where}, got {_shortened(first['input'])}"


def append_record(path: str | Path, record: Record) -> None:
    """Append one line to a JSON Lines file and sync it to disk.

    A partial last line, left by a killed process, is removed first. On POSIX systems, an append waits for that of
    another process; elsewhere, only one process may write to a file.

    Raises:
        ValueError: The record does not match the schema of its kind. The file is unchanged.
    """
    line = _to_line(record)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)  # closing the file releases the lock
        _repair_tail(file)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def check_appendable(path: str | Path) -> None:
    """Raise an ``OSError`` if no records file can be at ``path``; to be called before a long measurement."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected a file or a new path")
    parent = next(parent for parent in path.parents if parent.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{parent} is a file; expected a folder")
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise PermissionError(f"{path} cannot be written")


def read_records(path: str | Path) -> list[Record]:
    """Read a JSON Lines file in order, without the partial last line that a killed process may leave.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A line is not a JSON object. The message names the file and the line.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"records file {path} does not exist; expected a JSON Lines file")
    with path.open("rb") as file:
        return [
            _parse_line(line, path, number)
            for number, line in enumerate(file, start=1)
            if line.endswith(b"\n") or _is_record(line)
        ]


def read_checked_records(path: str | Path) -> list[Record]:
    """Read a JSON Lines file and validate every record.

    Records with equal versions or hardware share one object, since these make up most of a short record.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A line is not a valid record. The message names the file, the line and the field.
    """
    records = read_records(path)
    shared: dict[str, Any] = {}
    for number, record in enumerate(records, start=1):
        try:
            check_record(record)
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {error}") from error
        origin = record["provenance"]
        origin |= {key: shared.setdefault(str(origin[key]), origin[key]) for key in _SHARED & origin.keys()}
    return records


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Replace a JSON Lines file atomically: readers see either the old or the new records."""
    write_bytes(path, b"".join(map(_to_line, records)))


def provenance(*, seed: int | None = None, data_fingerprint: str | None = None) -> Record:
    """Return the provenance of a number: source commit, time, versions, hardware, seed and data.

    Returns:
        ``git_commit`` and ``git_dirty`` (whether tracked files are modified), both None outside a checkout;
        ``time_utc``; ``versions``, None for packages that are not installed; ``hardware``, ``seed`` and
        ``data_fingerprint``.
    """
    commit = _git_commit()
    return {
        "git_commit": commit,
        "git_dirty": None if commit is None else not os.environ.get(COMMIT_VARIABLE) and _is_dirty(),
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "hardware": _hardware(),
        "seed": seed,
        "data_fingerprint": data_fingerprint,
    }


def _to_line(record: Record) -> bytes:
    line = to_json(record).encode("utf-8") + b"\n"
    check_record(record)
    return line


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _parse_line(line: bytes, path: Path, number: int) -> Record:
    try:
        record = from_json(line, allow_inf_nan=False)  # keeps one copy of names and short texts that repeat
    except ValueError as error:
        raise ValueError(f"{path} line {number} is not valid JSON ({error}); fix or remove that line") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} line {number} contains {type(record).__name__}; expected a JSON object")
    return record


def _split_tail(data: bytes) -> tuple[bytes, bytes]:
    """The data up to the last newline, and the rest."""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def _is_record(tail: bytes) -> bool:
    """Whether a line without a newline is complete; no proper prefix of a JSON object is valid JSON."""
    try:
        return isinstance(json.loads(tail), dict)
    except (ValueError, RecursionError):
        return False


def _repair_tail(file: BinaryIO) -> None:
    file.seek(0)
    complete, tail = _split_tail(file.read())
    if _is_record(tail):
        file.write(b"\n")
    elif tail:
        file.truncate(len(complete))


def _git_commit() -> str | None:
    """Commit of the checkout that tracks this file; None for a copy installed inside another project.

    ``ALIBI_GPT_COMMIT`` names the commit if the sources were copied to a machine without the repository.
    """
    if named := os.environ.get(COMMIT_VARIABLE):
        return named
    if _git("ls-files", "--error-unmatch", _SOURCE_FILE.name) is None:
        return None
    return _git("rev-parse", "HEAD")


def _is_dirty() -> bool:
    return bool(_git("status", "--porcelain", "--untracked-files=no"))


def _git(*arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(_SOURCE_FILE.parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _hardware() -> Record:
    import psutil
    import torch

    return {
        "cpu": _cpu_model(),
        "num_cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
