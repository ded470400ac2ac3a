"""Which checkpoints of a run can be gone on from: those whose files are, to the last byte, what was saved."""

import json
import logging
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from modeling_alibi_gpt.checkpoints.folder import INDEX_NAMES, read_index
from modeling_alibi_gpt.runtime.manifest import MANIFEST_FILE, manifest_difference, write_manifest
from modeling_alibi_gpt.runtime.parsing import read_mapping


# Beside the experiment in every folder whose checkpoints have manifests.
DATA_FILE = "data.json"
_NEEDED = (  # by Trainer, to go on as if nothing had happened; several names where it depends on how a model is spread
    ("optimizer.pt", "optimizer.bin", "optimizer_*"),
    ("scheduler.pt",),
    ("rng_state*.pth",),
    ("model*.safetensors", "pytorch_model*"),
)

logger = logging.getLogger(__name__)


def has_checkpoints(output_dir: Path) -> bool:
    """Whether a run's folder holds checkpoints, whole or not."""
    return any(output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))


def check_indexes(output_dir: Path) -> None:
    """Raise a ValueError where a checkpoint's index of weights is none of ours, such as one that leaves its folder.

    No damage leaves such an index, so the checkpoint is not dropped either.
    """
    for checkpoint in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if _unreadable_file(checkpoint) is None:
            _shards(checkpoint)


def drop_damaged_checkpoints(output_dir: Path, *, needs_best: bool = False) -> None:
    """Remove the newest checkpoints up to one that is as its manifest says; a warning names what is wrong with each.

    Only the checkpoint that the run goes on from is read. One without a manifest was killed while it was saved.

    Args:
        output_dir: Folder of the run.
        needs_best: The run ends with its best model: the checkpoint that holds it by then must be whole, too, or the
            run goes on from before it.
    """
    while (newest := get_last_checkpoint(str(output_dir))) is not None:
        checkpoint = Path(newest)
        difference = manifest_difference(checkpoint) or (_best_difference(checkpoint) if needs_best else None)
        if difference is None:
            return
        _drop(checkpoint, difference)


def adopt_checkpoints(output_dir: Path) -> None:
    """Write manifests for the checkpoints of an earlier version, which wrote none, oldest first.

    Such a checkpoint is taken for whole where every file can be opened, weights, optimizer, scheduler and random state
    are there, and its state is of the step in its name. Others are dropped; a warning names what is wrong with each.
    """
    checkpoints = [path for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if not _has_manifest(path)]
    for checkpoint in sorted(checkpoints, key=lambda path: path.stat().st_mtime_ns):
        if difference := _unreadable_file(checkpoint) or _missing_part(checkpoint):
            _drop(checkpoint, difference)
        else:
            write_manifest(checkpoint)


def remove_torn_checkpoints(output_dir: Path) -> None:
    """Remove the checkpoints that a full disk left half-written: nobody has room for them."""
    are_listed = (output_dir / DATA_FILE).exists()
    for checkpoint in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not _has_manifest(checkpoint) and _is_torn(checkpoint, are_listed):
            shutil.rmtree(checkpoint)


def _has_manifest(checkpoint: Path) -> bool:
    return (checkpoint / MANIFEST_FILE).is_file()


def _is_torn(checkpoint: Path, are_listed: bool) -> bool:
    """Whether a checkpoint without manifest is torn: all are in a run that writes manifests, but for foreign ones."""
    if _unreadable_file(checkpoint) is not None:
        return True
    try:
        _shards(checkpoint)
    except ValueError:
        return False
    return are_listed


def _drop(checkpoint: Path, difference: str) -> None:
    logger.warning("%s is dropped, it is not whole: %s. The run goes on from before it.", checkpoint, difference)
    shutil.rmtree(checkpoint)


def _best_difference(checkpoint: Path) -> str | None:
    """What is wrong with the checkpoint that was the best so far when another was saved."""
    path = read_mapping(checkpoint / TRAINER_STATE_NAME).get("best_model_checkpoint")
    if path is None or Path(path).name == checkpoint.name:
        return None
    difference = manifest_difference(checkpoint.parent / Path(path).name)
    return difference and f"of {Path(path).name}, which holds the best model so far, {difference}"


def _unreadable_file(checkpoint: Path) -> str | None:
    """The first file of a checkpoint that is cut or missing, in words, by what can be told without a manifest."""
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
    except ValueError:  # an index that no run of ours wrote is not dropped in silence
        shards = []
    for path in shards:
        if not path.is_file():
            return f"{path.name} is missing"
    archives = (path for pattern in ("*.pt", "*.pth", "*.bin") for path in sorted(checkpoint.glob(pattern)))
    return next((f"{path.name} is cut" for path in archives if not zipfile.is_zipfile(path)), None)


def _missing_part(checkpoint: Path) -> str | None:
    for names in _NEEDED:
        if not any(any(checkpoint.glob(name)) for name in names):
            return f"{names[0]} is missing"
    try:
        step = read_mapping(checkpoint / TRAINER_STATE_NAME).get("global_step")
    except ValueError as error:
        return str(error)
    if checkpoint.name != f"{PREFIX_CHECKPOINT_DIR}-{step}":
        return f"{TRAINER_STATE_NAME} is of step {step!r}"
    return None


def _shards(checkpoint: Path) -> list[Path]:
    """The files that a checkpoint's indexes name; a ValueError where one is none of ours, as ``read_index`` says."""
    indexes = [checkpoint / name for name in INDEX_NAMES if (checkpoint / name).is_file()]
    return [checkpoint / name for index in indexes for name in sorted(set(read_index(index).values()))]
