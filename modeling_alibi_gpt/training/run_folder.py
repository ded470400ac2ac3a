"""The folder of a run: the experiment and text that it belongs to, its lock, and saving the final model.

Its files, in the order in which they appear:

* ``.lock``: held by the process that trains here.
* ``experiment.json``: the settings of the run.
* ``data.json``: fingerprints of what it reads, its model and sequences per step. No checkpoint is read without it.
* ``precision.json``: the precision that ``auto`` measured.
* ``milestones.jsonl``: measurements during the run.
* ``checkpoint-N/manifest.json``: the checkpoint of step N is complete.
* ``.saving/``: the final model while it is written; then its files, and ``manifest.json``, which lists them.
* ``training.jsonl``: the run is finished.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint

from modeling_alibi_gpt.runtime.atomic import FULL_DISK_ERRNOS, full_disk_as_os_error, write_json
from modeling_alibi_gpt.runtime.config import with_defaults
from modeling_alibi_gpt.runtime.manifest import manifest_difference
from modeling_alibi_gpt.runtime.parsing import read_mapping
from modeling_alibi_gpt.runtime.run_names import EXPERIMENT_FILE
from modeling_alibi_gpt.training.resumable import (
    check_indexes,
    drop_damaged_checkpoints,
    has_checkpoints,
    remove_torn_checkpoints,
)


PRECISION_FILE = "precision.json"
RECORD_FILE = "training.jsonl"
DATA_FILE = "data.json"
MILESTONES_FILE = "milestones.jsonl"
BATCH = "sequences_per_step"
MODEL = "model"
_LOCK_FILE = ".lock"
_SAVING_DIR = ".saving"


def check_output_dir(output_dir: Path, config: Any) -> None:
    """Check that a folder contains neither results of another experiment nor foreign files.

    A run resumes from the checkpoints that it finds, so they must never belong to another experiment.

    Args:
        output_dir: The folder, which need not exist.
        config: The experiment, a dataclass.

    Raises:
        ValueError: The folder contains results of another experiment, files that are not of a run, or a foreign weight
            index, such as one that names files outside its folder.
    """
    check_indexes(output_dir)
    claim = output_dir / EXPERIMENT_FILE
    if claim.exists():
        differing = _differing_settings(claim, config)
        if differing and _has_results(output_dir):
            raise ValueError(
                f"{output_dir} contains another run, with different values of {', '.join(differing)}; "
                "choose another training.output_dir or delete that folder"
            )
    elif output_dir.exists() and not all(_is_leftover(path) for path in output_dir.iterdir()):
        raise ValueError(f"{output_dir} is not empty and is not a run folder; choose another output_dir")


@contextmanager
def claimed_output_dir(output_dir: Path, config: Any, text: Mapping[str, Any]) -> Iterator[None]:
    """Claim a folder for this experiment on this text, and lock it against other processes.

    Removes files that a killed run left incomplete, damaged checkpoints, and what remains of another experiment that
    never reached a checkpoint.

    Args:
        output_dir: The folder; created if it is missing.
        config: The experiment, a dataclass.
        text: Fingerprints of what the run reads, by kind, its model under ``MODEL``, as ``check_model`` takes it, and
            the number of sequences per step under ``BATCH``.

    Raises:
        ValueError: The folder contains something else, a run on another text, of another model or of other batches, or
            another process is using it.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(output_dir / _LOCK_FILE).acquire(blocking=False)
    except Timeout as error:
        raise ValueError(f"another process is training in {output_dir}; wait for it or stop it") from error
    with lock:
        check_output_dir(output_dir, config)
        _check_text(output_dir, text)
        _remove_leftovers(output_dir)
        _write_claim(output_dir, config, dict(text))
        drop_damaged_checkpoints(output_dir, needs_best=bool(config.training.get("load_best_model_at_end")))
        yield


def newest_checkpoint(output_dir: Path, start: Path | None, text: Mapping[str, Any]) -> str | None:
    """The checkpoint to resume from: the run's own newest one, else ``start`` of another run, else None.

    Raises:
        ValueError: ``start`` is missing or damaged, or its run used another text or model.
    """
    if (own := get_last_checkpoint(str(output_dir))) is not None or start is None:
        return own
    if difference := manifest_difference(start):
        raise ValueError(f"cannot resume from {start}: {difference}; delete {start.parent} to train it again")
    _check_text(start.parent, text)
    return str(start)


def check_model(output_dir: Path, model: Mapping[str, Any]) -> None:
    """Check that a run started with this model.

    Args:
        output_dir: Its folder. Runs of earlier versions, which did not record their model, pass.
        model: As returned by ``model_identity``.

    Raises:
        ValueError: The model config or the checkpoint at its path has changed since.
    """
    path = output_dir / DATA_FILE
    begun = read_mapping(path).get(MODEL, {}) if path.exists() else {}
    if (field := _differing_field(begun, model)) is not None:
        raise ValueError(
            f"{output_dir} contains a run of another model: got {field} {model[field]!r}, expected {begun[field]!r}; "
            "restore the model.config or model.checkpoint that it started with, choose another training.output_dir or "
            "delete that folder"
        )


def _differing_field(begun: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    """The first field in which two models differ. A field that another version lacks has its default."""
    return min((field for field in begun.keys() & model.keys() if begun[field] != model[field]), default=None)


def _check_text(output_dir: Path, text: Mapping[str, Any]) -> None:
    """Raise a ValueError if checkpoints were trained on other text or tokens, in other batches or of another model."""
    path = output_dir / DATA_FILE
    if not has_checkpoints(output_dir):
        return
    if not path.exists():
        raise ValueError(
            f"{output_dir} contains checkpoints but no {DATA_FILE}, which says what they were trained on: restore "
            "that file, choose another training.output_dir or delete that folder"
        )
    begun = read_mapping(path)
    if begun.get(BATCH) != text.get(BATCH):
        raise ValueError(
            f"{output_dir} contains a run of {begun.get(BATCH)} sequences per step, got {text.get(BATCH)}: resume it "
            "with as many processes as it was started with; with a global_batch_size, a run can resume with any number"
        )
    for what, fingerprint in text.items():
        if what not in (BATCH, MODEL) and begun.get(what) != fingerprint:
            raise ValueError(
                f"{output_dir} contains a run on other {what}: got fingerprint {fingerprint}, expected "
                f"{begun.get(what)}; restore the text and the tokenizer that it started with, choose another "
                "training.output_dir or delete that folder"
            )
    check_model(output_dir, text.get(MODEL, {}))


def _write_claim(output_dir: Path, config: Any, text: dict[str, Any]) -> None:
    claim, data, settings = output_dir / EXPERIMENT_FILE, output_dir / DATA_FILE, _settings(config)
    if not claim.exists() or _differing_settings(claim, config):
        for name in (PRECISION_FILE, MILESTONES_FILE, DATA_FILE):
            (output_dir / name).unlink(missing_ok=True)
    if not claim.exists() or read_mapping(claim) != settings:
        write_json(claim, settings)
    begun = read_mapping(data) if data.exists() else {}
    differs = any(begun.get(what, found) != found for what, found in text.items() if what != MODEL)
    if differs or _differing_field(begun.get(MODEL, {}), text.get(MODEL, {})):  # no checkpoints yet, but milestones
        (output_dir / MILESTONES_FILE).unlink(missing_ok=True)
    write_json(data, text)


def save_model_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[Path]:
    """Save model and tokenizer for ``from_pretrained``: write a temporary folder, then move its files, config last.

    Returns:
        Paths of the files.

    Raises:
        OSError: The disk is full; the previous contents of the folder are intact.
    """
    beside = folder / _SAVING_DIR
    try:
        with full_disk_as_os_error(folder):
            model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
        files = (path.relative_to(beside) for path in beside.rglob("*") if path.is_file())
        written = sorted(files, key=lambda path: path.name == "config.json")
        for path in written:
            (folder / path).parent.mkdir(exist_ok=True)
            os.replace(beside / path, folder / path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return [folder / path for path in written]


@contextmanager
def whole_checkpoints_on_a_full_disk(output_dir: Path) -> Iterator[None]:
    """Report a full disk uniformly, as ``full_disk_as_os_error`` does, and delete incomplete checkpoints.

    Raises:
        OSError: With errno ENOSPC, if safetensors or torch fails on a full disk.
    """
    try:
        with full_disk_as_os_error(output_dir):
            yield
    except OSError as error:
        if error.errno in FULL_DISK_ERRNOS:
            remove_torn_checkpoints(output_dir)
        raise


def _is_leftover(path: Path) -> bool:
    """Whether a file is a leftover of a run that was killed right at the start."""
    return path.name == _LOCK_FILE or path.match(".*.tmp")


def _remove_leftovers(output_dir: Path) -> None:
    shutil.rmtree(output_dir / _SAVING_DIR, ignore_errors=True)
    for path in output_dir.glob(".*.tmp"):
        path.unlink()


def _has_results(output_dir: Path) -> bool:
    return (output_dir / RECORD_FILE).exists() or has_checkpoints(output_dir)


def _settings(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _differing_settings(claim: Path, config: Any) -> list[str]:
    """The settings that differ from those that a folder was claimed for.

    Keys that an earlier version lacks have their default. The path of the folder may differ, since it may be moved.
    """
    differing = differing_keys(with_defaults(type(config), read_mapping(claim)), _settings(config))
    return [key for key in differing if key != "training.output_dir"]


def differing_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The keys (``section.key``) whose values differ between two mappings of JSON values."""
    keys = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            keys += differing_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            keys.append(f"{prefix}{key}")
    return keys
