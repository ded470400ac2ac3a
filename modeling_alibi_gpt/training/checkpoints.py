"""What lies in a run's folder: whose run it is, which checkpoints are whole, and how the final model gets there."""

import dataclasses
import errno
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from modeling_alibi_gpt.reporting.records import write_json
from modeling_alibi_gpt.training.checkpoint_folder import INDEX_NAMES, read_index
from modeling_alibi_gpt.training.experiment import read_mapping


EXPERIMENT_FILE = "experiment.json"
PRECISION_FILE = "precision.json"
RECORD_FILE = "training.jsonl"
_LOCK_FILE = ".lock"
_SAVING_DIR = ".saving"
_FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_PROBE_BYTES = 2**16


def check_output_dir(output_dir: Path, config: Any) -> None:
    """Make sure that a folder holds no other experiment's results, nor other people's files.

    A run goes on from the checkpoints it finds, so those of another experiment must never lie there.

    Args:
        output_dir: The folder, which need not exist.
        config: The experiment, a dataclass.

    Raises:
        ValueError: The folder holds checkpoints of another experiment, files that no run of ours wrote, or an index of
            weights that no run of ours wrote, such as one that names files elsewhere.
    """
    for checkpoint in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if _is_complete(checkpoint):
            _shards(checkpoint)
    claim = output_dir / EXPERIMENT_FILE
    if claim.exists():
        differing = _differing_keys(read_mapping(claim), _settings(config))
        if differing and _has_results(output_dir):
            raise ValueError(
                f"{output_dir} holds another run, with other values of {', '.join(differing)}; "
                "choose another training.output_dir or delete that folder"
            )
    elif output_dir.exists() and not all(_is_leftover(path) for path in output_dir.iterdir()):
        raise ValueError(f"{output_dir} is not empty and holds no run of this program; choose another output_dir")


@contextmanager
def claimed_output_dir(output_dir: Path, config: Any) -> Iterator[None]:
    """Mark a folder as the place of this experiment and hold it against other processes.

    What a killed run left half-written is removed, and what another experiment left that never got to a checkpoint.

    Args:
        output_dir: The folder; made if it is missing.
        config: The experiment, a dataclass.

    Raises:
        ValueError: The folder holds something else, or another process is at work in it.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(output_dir / _LOCK_FILE).acquire(blocking=False)
    except Timeout as error:
        raise ValueError(f"another process is training in {output_dir}; wait for it or end it") from error
    with lock:
        check_output_dir(output_dir, config)
        _remove_leftovers(output_dir)
        claim, settings = output_dir / EXPERIMENT_FILE, _settings(config)
        if not claim.exists() or read_mapping(claim) != settings:
            (output_dir / PRECISION_FILE).unlink(missing_ok=True)
            write_json(claim, settings)
        yield


def remove_torn_checkpoints(output_dir: Path) -> None:
    """Remove the checkpoints that a kill or a full disk left half-written.

    Trainer writes its state file last; the other files are looked at too, for a machine may die as well.
    """
    for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not _is_complete(path):
            shutil.rmtree(path)


def save_model_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save model and tokenizer for ``from_pretrained``: written beside, then moved file by file, config last.

    Raises:
        OSError: The disk is full; what the folder held before is whole.
    """
    beside = folder / _SAVING_DIR
    try:
        with full_disk_as_os_error(folder):
            model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
        for path in sorted(beside.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def full_disk_as_os_error(output_dir: Path) -> Iterator[None]:
    """Give a full disk one name, whichever library met it, and leave no torn checkpoint behind.

    Raises:
        OSError: With errno ENOSPC, where safetensors or torch met a full disk.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if _errno(error) not in _FULL_DISK_ERRNOS and not _is_disk_full(output_dir):
            raise
        remove_torn_checkpoints(output_dir)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output_dir)) from error


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
        return error.errno in _FULL_DISK_ERRNOS
    return False


def _is_complete(checkpoint: Path) -> bool:
    try:
        for path in (checkpoint / TRAINER_STATE_NAME, *checkpoint.glob("*.json")):
            json.loads(path.read_text(encoding="utf-8"))
        for path in checkpoint.glob("*.safetensors"):
            with safe_open(path, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    with suppress(ValueError):  # an index that no run of ours wrote is not dropped in silence
        if not all(path.is_file() for path in _shards(checkpoint)):
            return False
    archives = (path for pattern in ("*.pt", "*.pth", "*.bin") for path in checkpoint.glob(pattern))
    return all(zipfile.is_zipfile(path) for path in archives)


def _shards(checkpoint: Path) -> list[Path]:
    """The files that a checkpoint's indexes name; a ValueError where one is none of ours, as ``read_index`` says."""
    indexes = [checkpoint / name for name in INDEX_NAMES if (checkpoint / name).is_file()]
    return [checkpoint / name for index in indexes for name in sorted(set(read_index(index).values()))]


def _is_leftover(path: Path) -> bool:
    """Whether a file is what a run that was killed at its very start leaves."""
    return path.name == _LOCK_FILE or path.match(".*.tmp")


def _remove_leftovers(output_dir: Path) -> None:
    shutil.rmtree(output_dir / _SAVING_DIR, ignore_errors=True)
    for path in output_dir.glob(".*.tmp"):
        path.unlink()
    remove_torn_checkpoints(output_dir)


def _has_results(output_dir: Path) -> bool:
    return (output_dir / RECORD_FILE).exists() or any(output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))


def _settings(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _differing_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            keys += _differing_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            keys.append(f"{prefix}{key}")
    return keys
