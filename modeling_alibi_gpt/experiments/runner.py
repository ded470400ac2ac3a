"""The grid of a comparison or a sweep: jobs that workers share by file locks, and trainings that experiments share."""

import dataclasses
import datetime
import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers import TrainerCallback

from modeling_alibi_gpt.checkpoints.load import checkpoint_fingerprint
from modeling_alibi_gpt.runtime.config import build_config, with_defaults
from modeling_alibi_gpt.runtime.parsing import read_mapping
from modeling_alibi_gpt.training.experiment import DataSection, ExperimentConfig, ModelSection
from modeling_alibi_gpt.training.model_setup import model_config
from modeling_alibi_gpt.training.run_folder import EXPERIMENT_FILE, RECORD_FILE
from modeling_alibi_gpt.training.trainer import train


POLL_SECONDS = 2
# What may differ between machines. The text itself is known by its fingerprint.
PLACES = {"training": ("output_dir",), "data": ("source", "validation_source", "cache_dir")}

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One cell of a grid.

    Attributes:
        label: What progress calls it, such as ``[3/8 rope seed 0]``.
        folder: Its results go there; the lock that its worker holds is a file beside.
        run: Does what is left of it, which is nothing once it is finished, and says what came of it.
        is_trained: Whether its training has ended: what is left of it says nothing of how long other jobs take.
    """

    label: str
    folder: Path
    run: Callable[[], str]
    is_trained: Callable[[], bool]


def run_jobs(jobs: Sequence[Job]) -> None:
    """Run every job that no other worker holds, then wait for the others'; one whose worker died is taken over.

    A lock ends with the process that holds it, so that nothing has to be released after a kill. Progress says how
    long the jobs that are left would take this worker alone, each as long as those that it trained in the mean.
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


def is_trained(experiment: ExperimentConfig) -> bool:
    """Whether the training of an experiment has ended."""
    return (Path(experiment.training["output_dir"]) / RECORD_FILE).exists()


def train_once(
    experiment: ExperimentConfig, callbacks: Sequence[TrainerCallback] = (), start: Path | None = None
) -> dict[str, Any]:
    """Train, go on with what a killed worker left, or find the training finished; one worker at a time.

    Args:
        experiment: The training.
        callbacks: As of ``train``.
        start: As of ``train``.

    Returns:
        The ``training`` record.

    Raises:
        ValueError: As ``train`` does.
        OSError: As ``train`` does.
    """
    folder = Path(experiment.training["output_dir"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Not the lock of a job, which may train into its own folder.
    with FileLock(folder.with_name(f".{folder.name}.training.lock")):
        return train(experiment, callbacks=callbacks, start=start)


def shared_experiment(experiment: ExperimentConfig, trainings_dir: str | None, text: str) -> ExperimentConfig:
    """The same training in the folder of ``trainings_dir`` that is named by its content.

    Two experiments get one folder if they train one model with one seed on one text, whatever their names, places and
    ways of writing the model's configuration. A finished or begun training in that folder keeps its own places.

    Args:
        experiment: The training.
        trainings_dir: Null leaves the experiment as it is.
        text: Fingerprint of the documents.
    """
    if trainings_dir is None:
        return experiment
    section = experiment.model
    if section.checkpoint is None:
        fields = model_config(section).to_diff_dict()
        section = ModelSection(config=fields, attn_implementation=section.attn_implementation)
    experiment = dataclasses.replace(experiment, name="training", model=section)
    content = {"experiment": settings_without_places(experiment), "text": text}
    written = json.dumps(_with_plain_numbers(content), sort_keys=True)
    folder = Path(trainings_dir) / hashlib.sha256(written.encode()).hexdigest()
    data = experiment.data
    if (begun := folder / EXPERIMENT_FILE).exists():  # by an experiment that had the same text at another place
        data = build_config(DataSection, with_defaults(DataSection, read_mapping(begun)["data"]))
    return dataclasses.replace(experiment, data=data, training={**experiment.training, "output_dir": str(folder)})


def _with_plain_numbers(value: Any) -> Any:
    """JSON values in which a whole number is an int: YAML tells ``alibi_beta: 2`` from 2.0, a training does not."""
    if isinstance(value, dict):
        return {key: _with_plain_numbers(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_plain_numbers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def settings_without_places(experiment: ExperimentConfig) -> dict[str, Any]:
    """What decides a training beside its text, as JSON values."""
    settings = dataclasses.asdict(experiment)
    if experiment.alibi_beta_schedule is None:  # as before there were schedules: trainings of then are found again
        del settings["alibi_beta_schedule"]
    for section, keys in PLACES.items():
        settings[section] = {key: value for key, value in settings[section].items() if key not in keys}
    if (checkpoint := experiment.model.checkpoint) is not None and Path(checkpoint).is_dir():
        settings["model"]["checkpoint"] = checkpoint_fingerprint(checkpoint)
    return settings
