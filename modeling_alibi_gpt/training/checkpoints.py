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

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from modeling_alibi_gpt.reporting.records import write_json
from modeling_alibi_gpt.training.experiment import read_mapping


EXPERIMENT_FILE = "experiment.json"
_FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def claim_output_dir(output_dir: Path, config: Any) -> None:
    """Mark ``output_dir`` as the place of this experiment, or make sure that it already is.

    A run goes on from the checkpoints it finds, so those of another experiment must never lie there.

    Args:
        output_dir: The folder; made if it is missing.
        config: The experiment, a dataclass.

    Raises:
        ValueError: The folder holds another experiment, or files that no run of ours wrote.
    """
    claim = output_dir / EXPERIMENT_FILE
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    if claim.exists():
        differing = [key for key, old, new in _differences(read_mapping(claim), settings) if old != new]
        if differing:
            raise ValueError(
                f"{output_dir} holds another run, with other values of {', '.join(differing)}; "
                "choose another training.output_dir or delete that folder"
            )
        return
    if output_dir.exists() and any(output_dir.iterdir()):
        raise ValueError(f"{output_dir} is not empty and holds no run of this program; choose another output_dir")
    write_json(claim, settings)


def last_complete_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end; torn ones, which a kill leaves, are removed.

    Trainer writes its state file last, so a checkpoint whose state parses and whose archives open is whole.
    """
    checkpoints = [path for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    for path in sorted(checkpoints, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if _is_complete(path):
            return path
        shutil.rmtree(path)
    return None


def save_model_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save model and tokenizer for ``from_pretrained``: written beside, then moved file by file, config last."""
    beside = folder / f".saving-{os.getpid()}"
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
        last_complete_checkpoint(output_dir)
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
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        for path in checkpoint.glob("*.safetensors"):
            with safe_open(path, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return all(zipfile.is_zipfile(path) for path in (*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")))


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", before, after
