"""Generated rows, stored once in the ``datasets`` cache and regenerated when damaged."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features
from datasets.exceptions import DatasetGenerationError
from filelock import FileLock

from modeling_alibi_gpt.runtime.manifest import manifest_difference, write_manifest


WRITE_BYTES = 2**22  # size of a record batch: the buffer of the writer, and of a reader later on

logger = logging.getLogger(__name__)


def cached_dataset(generate: Callable[[], Iterator[dict[str, Any]]], features: Features, fingerprint: str) -> Dataset:
    """Rows of a generator, written to disk under ``fingerprint`` and generated only once.

    Each fingerprint has its own folder in the ``datasets`` cache, with a manifest. If a file no longer matches the
    manifest, a warning names it and the rows are generated again.

    Args:
        generate: Returns an iterator of rows, whose values are strings or arrays.
        features: Features of the rows.
        fingerprint: Identifies the generated rows.

    Raises:
        OSError: The rows could not be written, for instance because the disk is full.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE, "alibi_gpt", fingerprint)
    path = folder / "rows.arrow"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists() and (difference := manifest_difference(folder)):
            logger.warning("regenerating the damaged cached text %s: %s", folder, difference)
            shutil.rmtree(folder)
        if not path.exists():
            try:
                folder.mkdir(exist_ok=True)
                _write(generate(), features, path)
                write_manifest(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        rows = Dataset.from_file(str(path))
    rows._fingerprint = fingerprint
    return rows


def _write(rows: Iterator[dict[str, Any]], features: Features, path: Path) -> None:
    """Write rows in batches bounded by bytes, because a number of rows does not bound memory."""
    with datasets.arrow_writer.ArrowWriter(path=str(path), features=features) as writer:
        held: list[dict[str, Any]] = []
        num_bytes = 0
        for row in rows:
            held.append(row)
            num_bytes += sum(len(value) if isinstance(value, str) else value.nbytes for value in row.values())
            if num_bytes >= WRITE_BYTES:
                writer.write_table(_table(held, features))
                held, num_bytes = [], 0
        writer.write_table(_table(held, features))
        writer.finalize()


def _table(rows: list[dict[str, Any]], features: Features) -> pa.Table:
    schema = features.arrow_schema
    return pa.table([_column([row[field.name] for row in rows], field.type) for field in schema], schema=schema)


def _column(values: list[Any], type_: pa.DataType) -> pa.Array:
    if not values or isinstance(values[0], str):
        return pa.array(values, type_)
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(values)), type=type_)


@contextmanager
def naming_damage(source: str) -> Iterator[None]:
    """Raise a ValueError that names the cache if ``datasets`` finds a truncated file in its copy of a source."""
    try:
        yield
    except OSError as error:
        if type(error) is not OSError or error.errno is not None:  # no network, no file, a full disk
            raise
        raise ValueError(
            f"{source}: its copy in the datasets cache {datasets.config.HF_DATASETS_CACHE} is truncated ({error}): "
            "delete that copy and run again"
        ) from error


@contextmanager
def os_errors_in_the_open() -> Iterator[None]:
    """Re-raise the ``OSError`` (a full disk, for example) that ``datasets`` wraps in an error of its own."""
    try:
        yield
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise
