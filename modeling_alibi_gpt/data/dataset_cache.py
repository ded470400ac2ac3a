"""Rows that are generated once and kept in the cache of ``datasets``, whole or generated again."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, concatenate_datasets
from datasets.exceptions import DatasetGenerationError
from filelock import FileLock

from modeling_alibi_gpt.runtime.manifest import manifest_difference, write_manifest


WRITE_BYTES = 2**22  # what is held before it is written, and what a later reader holds at once

logger = logging.getLogger(__name__)


def cached_dataset(generate: Callable[[], Iterator[dict[str, Any]]], features: Features, fingerprint: str) -> Dataset:
    """Rows of a generator, kept on disk under ``fingerprint`` and generated only once.

    They lie in a folder of their own in the datasets cache, with a manifest. Where a file is not what was written, a
    warning names it and the rows are generated again.

    Args:
        generate: Gives the rows, of strings and arrays.
        features: Of the rows.
        fingerprint: Of what is generated.

    Raises:
        OSError: The rows could not be written, for instance to a full disk.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE, "alibi_gpt", fingerprint)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists() and (difference := manifest_difference(folder)):
            logger.warning("the cached text %s is made again, it is not whole: %s", folder, difference)
            shutil.rmtree(folder)
        if not folder.exists():
            try:
                folder.mkdir()
                _write(generate(), features, folder / "rows.arrow")
                write_manifest(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        # Earlier versions left the layout of the files to the library; run later, they put theirs beside ours.
        ours = folder / "rows.arrow"
        paths = [ours] if ours.exists() else sorted(folder.rglob("*.arrow"))
        rows = concatenate_datasets([Dataset.from_file(str(path)) for path in paths])
    rows._fingerprint = fingerprint
    return rows


def _write(rows: Iterator[dict[str, Any]], features: Features, path: Path) -> None:
    """Write rows in batches of bytes: of their number nothing follows for the memory that they take."""
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
