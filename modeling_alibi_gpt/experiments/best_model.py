"""Copy the best model of a sweep to a folder for publication, atomically and without other files."""

from pathlib import Path

from modeling_alibi_gpt.checkpoints.companions import WEIGHT_PATTERNS, companion_files, copy_files
from modeling_alibi_gpt.runtime.atomic import atomic_directory
from modeling_alibi_gpt.training.finished import check_model_folder


def copy_model(source: Path, folder: Path) -> None:
    """Copy only the model of a finished training; other files in its folder may contain private paths.

    Raises:
        ValueError: The model has changed since it was saved.
    """
    try:
        check_model_folder(source)
    except ValueError as error:
        raise ValueError(
            f"{source} is the best trial, but its model is damaged ({error}): restore the file, or train it again "
            "with 'alibi-gpt train' and the experiment in best.json"
        ) from error
    weights = [path for pattern in WEIGHT_PATTERNS for path in source.glob(pattern)]
    with atomic_directory(folder, replaces=True) as tmp_path:
        copy_files([source / "config.json", *weights, *companion_files(source)], source, tmp_path)
