"""Find the checkpoints that a run can resume from: those whose files are byte-identical to what was saved."""

import json
import logging
import shutil
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from modeling_alibi_gpt.checkpoints.folder import INDEX_NAMES, read_index
from modeling_alibi_gpt.runtime.manifest import MANIFEST_FILE, manifest_difference, write_manifest


# In every run folder whose checkpoints have manifests.
DATA_FILE = "data.json"
_NEEDED = (  # by Trainer to resume exactly; a file has several possible names if sharding changes it
    ("optimizer.pt", "optimizer.bin", "optimizer_*"),
    ("scheduler.pt",),
    ("rng_state*.pth",),
    ("model*.safetensors", "pytorch_model*"),
)

logger = logging.getLogger(__name__)


def has_checkpoints(output_dir: Path) -> bool:
    """Whether a run folder contains checkpoints, complete or not."""
    return any(output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))


def trainer_state(checkpoint: Path) -> dict[str, Any]:
    """The state that Trainer saved in a checkpoint. It contains every log of the run, so it can be of any size.

    Raises:
        ValueError: The file is missing or damaged.
    """
    path = checkpoint / TRAINER_STATE_NAME
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a mapping of keys to values, got {type(state).__name__}")
    return state


def check_indexes(output_dir: Path) -> None:
    """Raise a ValueError if the weight index of a checkpoint is foreign, for example names files outside its folder.

    Damage does not produce such an index, so the checkpoint is not deleted either.
    """
    for checkpoint in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if _unreadable_file(checkpoint) is None:
            _shards(checkpoint)


def drop_damaged_checkpoints(output_dir: Path, *, needs_best: bool = False) -> None:
    """Delete the newest checkpoints until one matches its manifest; a warning names what is wrong with each.

    Older checkpoints are not read. A checkpoint without a manifest was interrupted while it was saved.

    Args:
        output_dir: Folder of the run.
        needs_best: The run loads its best model at the end, so the checkpoint that holds the best model so far must be
            intact too.
    """
    while (newest := get_last_checkpoint(str(output_dir))) is not None:
        checkpoint = Path(newest)
        difference = manifest_difference(checkpoint) or (_best_difference(checkpoint) if needs_best else None)
        if difference is None:
            return
        _drop(checkpoint, difference)


def adopt_checkpoints(output_dir: Path) -> None:
    """Write manifests for the checkpoints of an earlier version, which wrote none, oldest first.

    Such a checkpoint counts as complete if every file can be opened, it has weights, optimizer, scheduler and random
    state, and its state is of the step in its name. Others are deleted; a warning names what is wrong with each.
    """
    checkpoints = [path for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if not _has_manifest(path)]
    for checkpoint in sorted(checkpoints, key=lambda path: path.stat().st_mtime_ns):
        if difference := _unreadable_file(checkpoint) or _missing_part(checkpoint):
            _drop(checkpoint, difference)
        else:
            write_manifest(checkpoint)


def remove_torn_checkpoints(output_dir: Path) -> None:
    """Delete the checkpoints that a full disk left incomplete, to free their space."""
    are_listed = (output_dir / DATA_FILE).exists()
    for checkpoint in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not _has_manifest(checkpoint) and _is_torn(checkpoint, are_listed):
            shutil.rmtree(checkpoint)


def _has_manifest(checkpoint: Path) -> bool:
    return (checkpoint / MANIFEST_FILE).is_file()


def _is_torn(checkpoint: Path, are_listed: bool) -> bool:
    """Whether a checkpoint without a manifest is incomplete; with ``are_listed``, complete ones have a manifest."""
    if _unreadable_file(checkpoint) is not None:
        return True
    try:
        _shards(checkpoint)
    except ValueError:
        return False
    return are_listed


def _drop(checkpoint: Path, difference: str) -> None:
    logger.warning("deleting the damaged checkpoint %s: %s. The run resumes from before it.", checkpoint, difference)
    shutil.rmtree(checkpoint)


def _best_difference(checkpoint: Path) -> str | None:
    """What is wrong with the checkpoint of the best model at the time of ``checkpoint``; None if nothing."""
    path = trainer_state(checkpoint).get("best_model_checkpoint")
    if path is None or Path(path).name == checkpoint.name:
        return None
    difference = manifest_difference(checkpoint.parent / Path(path).name)
    return difference and f"in {Path(path).name}, which holds the best model so far, {difference}"


def _unreadable_file(checkpoint: Path) -> str | None:
    """The first file of a checkpoint that is visibly damaged or missing, in words; None if there is none."""
    for path in (checkpoint / TRAINER_STATE_NAME, *sorted(checkpoint.glob("*.json"))):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return f"{path.name} cannot be read ({error})"
    for path in sorted(checkpoint.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{path.name} cannot be read ({error})"
    try:
        shards = _shards(checkpoint)
    except ValueError:  # check_indexes reports a foreign index
        shards = []
    for path in shards:
        if not path.is_file():
            return f"{path.name} is missing"
    archives = (path for pattern in ("*.pt", "*.pth", "*.bin") for path in sorted(checkpoint.glob(pattern)))
    return next((f"{path.name} is truncated" for path in archives if not zipfile.is_zipfile(path)), None)


def _missing_part(checkpoint: Path) -> str | None:
    for names in _NEEDED:
        if not any(any(checkpoint.glob(name)) for name in names):
            return f"{names[0]} is missing"
    try:
        step = trainer_state(checkpoint).get("global_step")
    except ValueError as error:
        return str(error)
    if checkpoint.name != f"{PREFIX_CHECKPOINT_DIR}-{step}":
        return f"{TRAINER_STATE_NAME} is of step {step!r}"
    return None


def _shards(checkpoint: Path) -> list[Path]:
    """The files that the indexes of a checkpoint name; a ValueError for a foreign index, as in ``read_index``."""
    indexes = [checkpoint / name for name in INDEX_NAMES if (checkpoint / name).is_file()]
    return [checkpoint / name for index in indexes for name in sorted(set(read_index(index).values()))]
