"""Rows that are generated once and kept by ``datasets``, whole or generated again."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features
from datasets.exceptions import DatasetGenerationError
from filelock import FileLock

from modeling_alibi_gpt.runtime.manifest import manifest_difference, write_manifest


logger = logging.getLogger(__name__)


def cached_dataset(
    generate: Callable[[], Iterator[dict[str, Any]]],
    features: Features,
    fingerprint: str,
    rows_per_write: int | None = None,
) -> Dataset:
    """Rows of a generator, kept on disk by ``datasets`` under ``fingerprint`` and generated only once.

    They lie in a folder of their own in the datasets cache, with a manifest. Where a file is not what was written, a
    warning names it and the rows are generated again.

    ``rows_per_write`` rows are held in memory until they are written, None is the library's thousand.

    Raises:
        OSError: The rows could not be written, for instance to a full disk.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE, "alibi_gpt", fingerprint)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"), os_errors_in_the_open():
        if folder.exists() and (difference := manifest_difference(folder)):
            logger.warning("the cached text %s is made again, it is not whole: %s", folder, difference)
            shutil.rmtree(folder)
        if folder.exists():
            return _generated(generate, features, fingerprint, rows_per_write, folder)
        try:
            rows = _generated(generate, features, fingerprint, rows_per_write, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        write_manifest(folder, [*folder.rglob("*.arrow"), *folder.rglob("*.json")])
        return rows


def _generated(
    generate: Callable[[], Iterator[dict[str, Any]]],
    features: Features,
    fingerprint: str,
    rows_per_write: int | None,
    folder: Path,
) -> Dataset:
    return Dataset.from_generator(
        generate,
        features=features,
        cache_dir=str(folder),
        fingerprint=fingerprint,
        writer_batch_size=rows_per_write,
    )


@contextmanager
def naming_damage(source: str) -> Iterator[None]:
    """Raise a ValueError that names the cache where ``datasets`` finds a cut file in what it keeps of a source."""
    try:
        yield
    except OSError as error:
        if type(error) is not OSError or error.errno is not None:  # no network, no file, a full disk
            raise
        raise ValueError(
            f"{source}: its copy in the datasets cache {datasets.config.HF_DATASETS_CACHE} is cut ({error}): delete "
            "that copy, and it is made again"
        ) from error


@contextmanager
def os_errors_in_the_open() -> Iterator[None]:
    """Gives back the ``OSError``, which says that the disk is full, that ``datasets`` wraps in an error of its own."""
    try:
        yield
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise
