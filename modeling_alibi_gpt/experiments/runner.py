"""Run the grid of a comparison or sweep: workers share jobs by file locks, and experiments share trainings."""

import dataclasses
import datetime
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers import TrainerCallback

from modeling_alibi_gpt.checkpoints.load import checkpoint_fingerprint
from modeling_alibi_gpt.runtime.config import build_config, load_config, with_defaults
from modeling_alibi_gpt.runtime.parsing import read_mapping
from modeling_alibi_gpt.runtime.run_names import EXPERIMENT_FILE
from modeling_alibi_gpt.training.experiment import DataSection, ExperimentConfig, ModelSection
from modeling_alibi_gpt.training.finished import finished_record
from modeling_alibi_gpt.training.model_setup import model_config, model_identity
from modeling_alibi_gpt.training.run_folder import DATA_FILE, RECORD_FILE, check_model
from modeling_alibi_gpt.training.trainer import train


POLL_SECONDS = 2
# Paths, which may differ between machines. The text itself is identified by its fingerprint.
PLACES = {"training": ("output_dir",), "data": ("source", "validation_source", "cache_dir")}

SHARED_FOLDER = re.compile("[0-9a-f]{64}")  # the name of a folder of ``shared_experiment``

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What one worker does at a time: a run of a comparison, or a part of a sweep.

    Attributes:
        label: Label in progress messages, such as ``[3/8 rope seed 0]``.
        folder: Folder of the results; the lock of its worker is a file next to it.
        run: Does the remaining work, which is nothing if the job is finished, and describes the result.
        is_trained: Whether training has finished; the rest of the job then says nothing about the time of other jobs.
    """

    label: str
    folder: Path
    run: Callable[[], str]
    is_trained: Callable[[], bool]


def run_jobs(jobs: Sequence[Job]) -> None:
    """Run every job that no other worker holds, then wait for the rest, and take over jobs whose worker died.

    A lock ends with its process, so nothing has to be released after a kill. The ETA assumes that this worker runs the
    remaining jobs alone, each in the mean time of the jobs that it has trained.
    """
    waiting, seconds = list(jobs), list[float]()
    num_announced = 0
    while True:
        for job in list(waiting):
            if _run_if_free(job, waiting, seconds):
                waiting.remove(job)
        if not waiting:
            return
        if len(waiting) != num_announced:
            num_announced = len(waiting)
            logger.info("waiting for %d runs of other workers", num_announced)
        time.sleep(POLL_SECONDS)


def _run_if_free(job: Job, waiting: Sequence[Job], seconds: list[float]) -> bool:
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(job.folder.with_name(f".{job.folder.name}.lock")).acquire(blocking=False)
    except Timeout:
        return False
    with lock:
        is_new, begun = not job.is_trained(), time.monotonic()
        logger.info("%s begins", job.label)
        result = job.run()
        if is_new:
            seconds.append(time.monotonic() - begun)
        num_left = sum(not other.is_trained() for other in waiting if other is not job)
        logger.info("%s %s%s", job.label, result, _eta(seconds, num_left))
    return True


def _eta(seconds: Sequence[float], num_left: int) -> str:
    if not seconds or not num_left:
        return ""
    left = datetime.timedelta(seconds=round(sum(seconds) / len(seconds) * num_left))
    return f", ETA {left} for the {num_left} left"


def load_experiment(source: str | dict[str, Any], overrides: Sequence[str]) -> ExperimentConfig:
    """The experiment of a file or of its contents, with overrides such as ``training.max_steps=100``.

    Raises:
        ValueError: As in ``load_config``.
    """
    path, values = (None, source) if isinstance(source, dict) else (source, {})
    return load_config(ExperimentConfig, path, overrides, **values)


def is_trained(experiment: ExperimentConfig) -> bool:
    """Whether the training of an experiment has finished."""
    return (Path(experiment.training["output_dir"]) / RECORD_FILE).exists()


def refuse_other_text(experiment: ExperimentConfig, text: Mapping[str, str]) -> None:
    """Raise a ValueError if the training of an experiment has finished on another text or from another model.

    Trainings are compared with each other, so all of them must have read the same text and the model of today's files.

    Args:
        experiment: The training.
        text: As returned by ``text_identity``.
    """
    folder = Path(experiment.training["output_dir"])
    finished = finished_record(folder, reads_model=False)
    if finished is None:
        return
    check_model(folder, model_identity(experiment.model))
    if (found := finished["provenance"].get("data_fingerprint")) != text["documents"]:
        raise ValueError(
            f"{folder} was trained on another text: got fingerprint {found}, expected {text['documents']}; restore "
            "the text, choose another output_dir or delete that folder"
        )
    data = folder / DATA_FILE
    known = read_mapping(data).get("tokens") if data.exists() else None
    if known is not None and (tokens := text.get("tokens", known)) != known:
        raise ValueError(
            f"{folder} was trained with another tokenizer: got fingerprint {known} of its tokens, expected {tokens}; "
            "restore the tokenizer, choose another output_dir or delete that folder"
        )


def train_once(
    experiment: ExperimentConfig, callbacks: Sequence[TrainerCallback] = (), start: Path | None = None
) -> dict[str, Any]:
    """Train, resume what a killed worker left, or return the record of a finished training; one worker at a time.

    Args:
        experiment: The training.
        callbacks: As in ``train``.
        start: As in ``train``.

    Returns:
        The ``training`` record.

    Raises:
        ValueError: As in ``train``.
        OSError: As in ``train``.
    """
    folder = Path(experiment.training["output_dir"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A separate lock from that of a job, which may train into its own folder.
    with FileLock(folder.with_name(f".{folder.name}.training.lock")):
        if SHARED_FOLDER.fullmatch(folder.name):  # another experiment may have begun it since it was planned
            experiment = _with_begun_paths(experiment)
        return train(experiment, callbacks=callbacks, start=start)


def shared_experiment(experiment: ExperimentConfig, trainings_dir: str | None, text: str) -> ExperimentConfig:
    """Move a training to a folder in ``trainings_dir`` that is named by a hash of its settings and text.

    Two experiments share a folder if they train the same model with the same seed on the same text, whatever their
    names, paths and notation of the model config. A training that has started in that folder keeps its paths.

    Args:
        experiment: The training.
        trainings_dir: None leaves the experiment unchanged.
        text: Fingerprint of the documents.
    """
    if trainings_dir is None:
        return experiment
    section = experiment.model
    if section.checkpoint is None:
        fields = model_config(section).to_diff_dict()
        fields.pop("transformers_version", None)  # an upgrade does not train anew
        section = ModelSection(config=fields, attn_implementation=section.attn_implementation)
    experiment = dataclasses.replace(experiment, name="training", model=section)
    content = {"experiment": settings_without_places(experiment), "text": text}
    written = json.dumps(_with_plain_numbers(content), sort_keys=True)
    folder = Path(trainings_dir) / hashlib.sha256(written.encode()).hexdigest()
    return _with_begun_paths(
        dataclasses.replace(experiment, training={**experiment.training, "output_dir": str(folder)})
    )


def _with_begun_paths(experiment: ExperimentConfig) -> ExperimentConfig:
    """The experiment with the paths of the one that began its folder, which may have the same text elsewhere."""
    begun = Path(experiment.training["output_dir"], EXPERIMENT_FILE)
    if not begun.exists():
        return experiment
    data = build_config(DataSection, with_defaults(DataSection, read_mapping(begun)["data"]))
    return dataclasses.replace(experiment, data=data)


def _with_plain_numbers(value: Any) -> Any:
    """JSON values with whole floats as int: YAML distinguishes ``alibi_beta: 2`` from 2.0, training does not."""
    if isinstance(value, dict):
        return {key: _with_plain_numbers(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_plain_numbers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def settings_without_places(experiment: ExperimentConfig) -> dict[str, Any]:
    """The settings other than the text that determine a training, as JSON values."""
    settings = dataclasses.asdict(experiment)
    if experiment.alibi_beta_schedule is None:  # keeps the hashes from before there were schedules
        del settings["alibi_beta_schedule"]
    for section, keys in PLACES.items():
        settings[section] = {key: value for key, value in settings[section].items() if key not in keys}
    if (checkpoint := experiment.model.checkpoint) is not None and Path(checkpoint).is_dir():
        settings["model"]["checkpoint"] = checkpoint_fingerprint(checkpoint)
    return settings
