"""The folder of a sweep's best model, ready to publish: only the model's files, complete or absent."""

import shutil
from pathlib import Path

from modeling_alibi_gpt.checkpoints.companions import WEIGHT_PATTERNS, companion_files
from modeling_alibi_gpt.runtime.atomic import atomic_directory
from modeling_alibi_gpt.training.finished import check_model_folder


def copy_model(source: Path, folder: Path) -> None:
    """Copy the model of a finished training. What else its folder says, of the machine for one, stays there.

    Raises:
        ValueError: The model is no longer what was saved.
    """
    try:
        check_model_folder(source)
    except ValueError as error:
        raise ValueError(
            f"{source} is the best trial, but its model is damaged ({error}): restore the file, or train it again "
            "with scripts/train.py and the experiment in best.json"
        ) from error
    weights = [path for pattern in WEIGHT_PATTERNS for path in source.glob(pattern)]
    with atomic_directory(folder, replaces=True) as tmp_path:
        for path in (source / "config.json", *weights, *companion_files(source)):
            shutil.copyfile(path, tmp_path / path.name)
