"""Records of measurements: what they hold, JSON Lines files that survive a kill, and where each number came from."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from modeling_alibi_gpt.reporting.record_types import check_fields


Record = dict[str, Any]

_PERPLEXITY_FIELDS = (
    *("name", "model", "position_method", "protocol", "length_tokens", "stride_tokens"),
    *("nats_per_token", "perplexity", "bits_per_byte", "num_tokens", "num_bytes"),
)
_SPEED_FIELDS = ("dtype", "seconds", "reference", "times_reference", "times_reference_quartiles", "extra_bytes")

# The fields a record of each kind must have; more are allowed. Every record has "kind" and "provenance" as well.
RECORD_FIELDS: dict[str, tuple[str, ...]] = {
    "training": (
        *("name", "model_dir", "position_method", "seed", "num_parameters", "train_length_tokens"),
        *("num_train_tokens", "validation_nats_per_token", "validation_perplexity", "num_validation_tokens"),
        *("train_seconds", "bf16", "loss_history"),
    ),
    "milestone": (
        *("name", "position_method", "step", "num_train_tokens", "train_length_tokens", "protocol", "length_tokens"),
        *("stride_tokens", "nats_per_token", "perplexity", "error"),
    ),
    "perplexity": _PERPLEXITY_FIELDS,
    "extrapolation": (*_PERPLEXITY_FIELDS, "train_context_length", "error", "nats_by_position"),
    "beta_trial": (
        *("mode", "study", "trial", "state", "beta", "seeds"),
        *("nats_per_token", "nats_per_token_by_seed", "perplexity"),
    ),
    "trained_beta": (
        *("alibi_trainable", "seed", "slopes_by_layer", "beta_by_layer"),
        *("nats_per_token", "perplexity"),
    ),
    "bias_matrix": ("name", "slopes", "bias"),
    "corpus": ("comparison", "source", "num_documents", "num_bytes", "fingerprint", "documents"),
    "published": (
        *("comparison", "name", "position_method", "protocol", "length_tokens", "stride_tokens", "perplexity"),
        *("train_context_length", "error"),
    ),
    "comparison": (
        *("comparison", "name", "variant", "reading", "position_method", "protocol", "length_tokens", "stride_tokens"),
        *("fields", "reading_fields", "train_context_length", "reference", "seeds"),
        *("nats_per_token_by_seed", "nats_per_token"),
        *("nats_per_token_sd", "perplexity", "difference_nats_by_seed", "difference_nats", "difference_nats_sd"),
        "error",
    ),
    "gpu_tests": ("passed", "failed", "skipped", "seconds", "failures"),
    "conformance": ("model", "suite", "transformers", "passed", "failed", "skipped", "seconds", "skipped_by_reason"),
    "precision": (
        *("dtype", "num_heads", "length_tokens", "head_dim", "num_queries"),
        *("bias_error_ulps", "bias_error_nats", "absolute_bias_error_nats"),
        *("plain_max_error", "plain_relative_rms_error", "absolute_max_error", "absolute_relative_rms_error"),
    ),
    "attention_speed": ("name", "mode", "length_tokens", "num_heads", "head_dim", *_SPEED_FIELDS, "max_error"),
    "model_speed": ("name", "mode", "length_tokens", "num_layers", "hidden_size", *_SPEED_FIELDS),
    "conversion_speed": (
        *("name", "mode", "length_tokens", "num_new_tokens", "num_layers", "hidden_size"),
        *(*_SPEED_FIELDS, "max_logit_difference"),
    ),
    "decode_speed": ("name", "context_tokens", "num_layers", "hidden_size", "cache_bytes", "max_difference"),
    "margins": (
        *("name", "length_tokens", "tolerance"),
        *("slopes_by_layer", "margins_nats_by_layer", "windows_tokens_by_layer"),
    ),
    "gguf": (
        *("name", "num_heads", "length_tokens", "num_new_tokens", "precision", "llama_cpp"),
        *("max_log_prob_difference_nats", "max_rounding_error_nats", "torch_rounding_error_nats"),
        "greedy_tokens_equal",
    ),
    "conversion_difference": (
        *("name", "model", "dtype", "reference", "reference_dtype", "length_tokens"),
        *("num_heads", "num_layers", "hidden_size"),
        *("max_logit_difference", "logit_std", "kl_nats_per_token"),
    ),
    "bias_by_distance": (
        *("name", "position_method", "train_context_length"),
        *("distances_tokens", "bias_before", "bias_after"),
    ),
}

_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "optuna", "tokenizers", "numpy")
_SOURCE_FILE = Path(__file__).resolve()
COMMIT_VARIABLE = "ALIBI_GPT_COMMIT"


def check_record(record: Record) -> None:
    """Raise ``ValueError`` unless ``record`` is of a known kind and has every field of that kind, each of its type."""
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in RECORD_FIELDS:
        raise ValueError(f"got a record of kind {kind!r}; expected one of {', '.join(RECORD_FIELDS)}")
    missing = [field for field in (*RECORD_FIELDS[kind], "provenance") if field not in record]
    if missing:
        raise ValueError(f"a {kind} record lacks {', '.join(missing)}; got only {', '.join(record)}")
    check_fields(record)


def append_record(path: str | Path, record: Record) -> None:
    """Add one line to a JSON Lines file and wait until it is on the disk.

    What a killed append left at the end of the file is cut off first, so that it never glues to this record. One
    process writes a file at a time; several workers write a file each.

    Raises:
        ValueError: the record holds NaN or infinity, or something that JSON cannot hold; the file is left as it was.
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
    complete, tail = _split_tail(path.read_bytes())
    lines = (complete + tail if _is_record(tail) else complete).splitlines()
    return [_parse_line(line, path, number) for number, line in enumerate(lines, start=1)]


def read_checked_records(path: str | Path) -> list[Record]:
    """The records of a JSON Lines file, each of a known kind and whole.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no record; names the file, the line and the field.
    """
    records = read_records(path)
    for number, record in enumerate(records, start=1):
        try:
            check_record(record)
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {error}") from error
    return records


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Replace a JSON Lines file as a whole: readers see the old records or the new ones, never a part."""
    write_bytes(path, b"".join(map(_to_line, records)))


def write_json(path: str | Path, obj: Any) -> None:
    """Replace a JSON file as a whole, indented for people. Raises ``ValueError`` on NaN or infinity."""
    write_text(path, _to_json(obj, indent=2) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Replace a UTF-8 text file as a whole."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace a file as a whole: write beside it, then rename. A failure leaves the old file and nothing else."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def provenance(*, seed: int | None = None, data_fingerprint: str | None = None) -> Record:
    """Where a number comes from: source commit, time, versions, hardware, seed and data.

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


def _to_json(obj: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(obj, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        what = f"a {obj['kind']} record" if isinstance(obj, dict) and "kind" in obj else "a record"
        raise ValueError(f"{what} cannot be written ({error}); write null where a number is not finite") from error


def _to_line(record: Record) -> bytes:
    return _to_json(record).encode("utf-8") + b"\n"


def _parse_line(line: bytes, path: Path, number: int) -> Record:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number")

    try:
        record = json.loads(line, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
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
