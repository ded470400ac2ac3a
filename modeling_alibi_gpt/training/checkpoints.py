"""What lies in a run's folder: whose run it is, which checkpoints are whole, and how the final model gets there."""

import dataclasses
import errno
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from modeling_alibi_gpt.reporting.records import write_json
from modeling_alibi_gpt.training.experiment import read_mapping


EXPERIMENT_FILE = "experiment.json"
_LOCK_FILE = ".lock"
_SAVING_DIR = ".saving"
_FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_output_dir(output_dir: Path, config: Any) -> None:
    """Make sure that a folder is new or holds this very experiment.

    A run goes on from the checkpoints it finds, so those of another experiment must never lie there.

    Args:
        output_dir: The folder, which need not exist.
        config: The experiment, a dataclass.

    Raises:
        ValueError: The folder holds another experiment, or files that no run of ours wrote.
    """
    claim = output_dir / EXPERIMENT_FILE
    if claim.exists():
        differences = _differences(read_mapping(claim), _settings(config))
        if differing := [key for key, old, new in differences if old != new]:
            raise ValueError(
                f"{output_dir} holds another run, with other values of {', '.join(differing)}; "
                "choose another training.output_dir or delete that folder"
            )
    elif output_dir.exists() and not all(_is_leftover(path) for path in output_dir.iterdir()):
        raise ValueError(f"{output_dir} is not empty and holds no run of this program; choose another output_dir")


@contextmanager
def claimed_output_dir(output_dir: Path, config: Any) -> Iterator[None]:
    """Mark a folder as the place of this experiment and hold it against other processes.

    What a killed run left half-written is removed.

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
        if not (output_dir / EXPERIMENT_FILE).exists():
            write_json(output_dir / EXPERIMENT_FILE, _settings(config))
        yield


def remove_torn_checkpoints(output_dir: Path) -> None:
    """Remove the checkpoints that a kill or a full disk left half-written.

    Trainer writes its state file last; the other files are looked at too, for a machine may die as well.
    """
    for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not _is_complete(path):
            shutil.rmtree(path)


def save_model_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save model and tokenizer for ``from_pretrained``: written beside, then moved file by file, config last."""
    beside = folder / _SAVING_DIR
    try:
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
        if not _is_full_disk(error):
            raise
        remove_torn_checkpoints(output_dir)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output_dir)) from error


def _is_full_disk(error: BaseException | None) -> bool:
    if error is None:
        return False
    if isinstance(error, OSError):
        return error.errno in _FULL_DISK_ERRNOS
    messages = (os.strerror(number) for number in _FULL_DISK_ERRNOS)
    # torch reports a failed write as a RuntimeError that names its stream writer, with or without the system's words.
    is_named = any(message in str(error) for message in messages) or "PytorchStreamWriter failed writing" in str(error)
    return is_named or _is_full_disk(error.__context__)


def _is_complete(checkpoint: Path) -> bool:
    try:
        for path in (checkpoint / TRAINER_STATE_NAME, *checkpoint.glob("*.json")):
            json.loads(path.read_text(encoding="utf-8"))
        for path in checkpoint.glob("*.safetensors"):
            with safe_open(path, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    archives = (path for pattern in ("*.pt", "*.pth", "*.bin") for path in checkpoint.glob(pattern))
    return all(zipfile.is_zipfile(path) for path in archives)


def _is_leftover(path: Path) -> bool:
    """Whether a file is what a run that was killed at its very start leaves."""
    return path.name == _LOCK_FILE or path.match(".*.tmp")


def _remove_leftovers(output_dir: Path) -> None:
    shutil.rmtree(output_dir / _SAVING_DIR, ignore_errors=True)
    for path in output_dir.glob(".*.tmp"):
        path.unlink()
    remove_torn_checkpoints(output_dir)


def _settings(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", before, after
