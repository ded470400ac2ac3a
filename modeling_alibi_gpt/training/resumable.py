"""Find the checkpoints that a run can resume from: those whose files are byte-identical to what was saved."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from modeling_alibi_gpt.checkpoints.folder import INDEX_NAMES, read_index
from modeling_alibi_gpt.runtime.manifest import MANIFEST_FILE, manifest_difference


logger = logging.getLogger(__name__)


def has_checkpoints(output_dir: Path) -> bool:
    """Whether a run folder contains checkpoints, complete or not."""
    return any(output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))


def remove_checkpoints(output_dir: Path) -> None:
    """Delete the checkpoints of a run that has ended. Another worker may be deleting them, too."""
    for checkpoint in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)


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
        for index in (checkpoint / name for name in INDEX_NAMES):
            if _is_json(index):
                read_index(index)


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


def remove_torn_checkpoints(output_dir: Path) -> None:
    """Delete the checkpoints that a full disk left incomplete, to free their space."""
    for checkpoint in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not (checkpoint / MANIFEST_FILE).is_file():
            shutil.rmtree(checkpoint)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


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
