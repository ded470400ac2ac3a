"""Records of measurements: their schemas, JSON Lines files that survive a kill, and the provenance of each number."""

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

from modeling_alibi_gpt.runtime import benchmark_types, bias_types, context_types, prediction_types, record_types
from modeling_alibi_gpt.runtime.atomic import to_json, write_bytes
from modeling_alibi_gpt.runtime.record_types import RecordType


Record = dict[str, Any]
# The schema of each kind.
RECORD_TYPES: dict[str, type[RecordType]] = {
    get_args(schema.model_fields["kind"].annotation)[0]: schema
    for module in (record_types, bias_types, prediction_types, benchmark_types, context_types)
    for schema in vars(module).values()
    if isinstance(schema, type) and issubclass(schema, RecordType) and get_args(schema.model_fields["kind"].annotation)
}

_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "optuna", "tokenizers", "numpy")
_SHARED = {"versions", "hardware"}
_SOURCE_FILE = Path(__file__).resolve()
COMMIT_VARIABLE = "ALIBI_GPT_COMMIT"


def check_record(record: Record) -> None:
    """Raise a ``ValueError`` that names the field unless ``record`` is of a known kind and as its schema says."""
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in RECORD_TYPES:
        raise ValueError(f"got a record of kind {kind!r}; expected one of {', '.join(RECORD_TYPES)}")
    try:
        RECORD_TYPES[kind].model_validate(record)
    except ValidationError as error:
        raise ValueError(_complaint(record, error)) from error


def _complaint(record: Record, error: ValidationError) -> str:
    """One line on the first thing that is wrong, or on all that is missing."""
    errors = error.errors(include_url=False)
    missing = [str(each["loc"][0]) for each in errors if each["type"] == "missing" and len(each["loc"]) == 1]
    if missing:
        return f"a {record['kind']} record lacks {', '.join(missing)}; got only {', '.join(record)}"
    first = errors[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    field, *within = first["loc"]
    if first["type"] == "extra_forbidden" and not within:
        known = ", ".join(RECORD_TYPES[record["kind"]].model_fields)
        return f"'{field}' is no field of a {record['kind']} record; it has {known}"
    expected = {
        "missing": f"an object with {first['loc'][-1]}",
        "extra_forbidden": f"an object without {first['loc'][-1]}",
        "model_type": "an object",
    }.get(first["type"], first["msg"].removeprefix("Input should be "))
    where = f" at {'.'.join(map(str, within))}" if within else ""
    return f"'{field}' must be {expected}{where}, got {_shortened(first['input'])}"


def append_record(path: str | Path, record: Record) -> None:
    """Add one line to a JSON Lines file and wait until it is on the disk.

    What a killed append left at the end of the file is cut off first, so that it never glues to this record. One
    process writes a file at a time; several workers write a file each.

    Raises:
        ValueError: the record is not as the schema of its kind says; the file is left as it was.
    """
    line = _to_line(record)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _repair_tail(file)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_records(path: str | Path) -> list[Record]:
    """The records of a JSON Lines file, in its order, without the torn last line that a killed append leaves.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a JSON object; names the file and the line.
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
    """The records of a JSON Lines file, each of a known kind and complete.

    Records of the same versions or hardware share one object that says so: those are most of a short record.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no record; names the file, the line and the field.
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
    """Replace a JSON Lines file atomically: readers see the old records or the new ones, never a part."""
    write_bytes(path, b"".join(map(_to_line, records)))


def provenance(*, seed: int | None = None, data_fingerprint: str | None = None) -> Record:
    """Provenance of a number: source commit, time, versions, hardware, seed and data.

    Returns:
        ``git_commit`` and ``git_dirty`` (tracked files changed; both null outside a checkout), ``time_utc``,
        ``versions`` (null for a package that is not installed), ``hardware``, ``seed``, ``data_fingerprint``.
    """
    commit = _git_commit()
    return {
        "git_commit": commit,
        "git_dirty": commit and COMMIT_VARIABLE not in os.environ and _is_dirty(),
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


def _shortened(value: Any, longest: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."


def _parse_line(line: bytes, path: Path, number: int) -> Record:
    try:
        record = from_json(line, allow_inf_nan=False)  # keeps one copy of names and short texts that repeat
    except ValueError as error:
        raise ValueError(f"{path} line {number} is not valid JSON ({error}); mend or remove that line") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} line {number} holds {type(record).__name__}; expected a JSON object")
    return record


def _split_tail(data: bytes) -> tuple[bytes, bytes]:
    """The lines that end in a newline, and what follows the last one."""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def _is_record(tail: bytes) -> bool:
    """Whether a line without its newline is whole all the same: no prefix of a JSON object is JSON itself."""
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
    """The commit of the checkout that tracks this very file: an installed copy inside another project has none.

    Where the sources of a commit were copied to a machine without it, a variable says which they are.
    """
    if COMMIT_VARIABLE in os.environ:
        return os.environ[COMMIT_VARIABLE]
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
