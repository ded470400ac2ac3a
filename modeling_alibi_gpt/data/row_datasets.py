"""Corpora whose documents are rows of a table: datasets on the Hub, JSON Lines files and Parquet files."""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value, concatenate_datasets
from datasets.exceptions import DatasetsError

from modeling_alibi_gpt.data.dataset_cache import naming_damage, os_errors_in_the_open
from modeling_alibi_gpt.data.documents import ROWS_PER_READ, Document, hash_of_text, validation_hashes
from modeling_alibi_gpt.data.text_files import matching_files


DOCUMENT_FEATURES = Features({"name": Value("string"), "text": Value("string")})
_BUILDERS = {"jsonl": "json", "parquet": "parquet"}


@dataclass(frozen=True)
class RowSource:
    """A source of rows, as arguments of ``datasets.load_dataset``.

    Attributes:
        source: The source as the user wrote it.
        location: Prefix of the document names.
        arguments: Keyword arguments of ``load_dataset``.
    """

    source: str
    location: str
    arguments: dict[str, Any]

    def load(self, split: str | None = None, *, streaming: bool = False) -> Any:
        """Load one split or expression, or with None a dictionary of all splits, with ``load_dataset``.

        Raises:
            ValueError: The source cannot be read or has no such split.
        """
        with self.naming_errors():
            return datasets.load_dataset(**self.arguments, split=split, streaming=streaming, trust_remote_code=False)

    @contextmanager
    def naming_errors(self) -> Iterator[None]:
        """Raise a ValueError that names the source where it cannot be read."""
        try:
            with os_errors_in_the_open(), naming_damage(self.source):
                yield
        except ValueError as error:
            raise ValueError(f"{self.source}: {error}") from error
        except StopIteration as error:  # of a JSON reader
            raise ValueError(f"{self.source} has no rows: expected at least one") from error
        except (ConnectionError, FileNotFoundError, RuntimeError, DatasetsError) as error:
            remedy = "check that all rows have the same columns and that no line is cut off"
            if self.source.startswith("hub:"):
                remedy = "check the name and the network, set HF_HUB_OFFLINE=1 to use a cached copy, or use text:GLOB"
            raise ValueError(f"{self.source} cannot be read ({error.__cause__ or error}): {remedy}") from error


def row_source(source: str) -> RowSource:
    """Parse ``hub:NAME[:CONFIG][@REVISION]``, ``jsonl:GLOB`` or ``parquet:GLOB``.

    Raises:
        ValueError: No file matches.
    """
    kind, _, location = source.partition(":")
    if kind in _BUILDERS:
        paths = [glob.escape(str(path)) for path in matching_files(location)]
        return RowSource(source, location, {"path": _BUILDERS[kind], "data_files": {"train": paths}})
    name, revision = location, None
    if "@" in location and not os.path.exists(location.partition(":")[0]):
        name, _, revision = location.rpartition("@")
    name, _, config = name.partition(":")
    return RowSource(source, location, {"path": name, "name": config or None, "revision": revision})


def read_rows(source: str, split: str, *, train_split: str, text_column: str, validation_fraction: float) -> Dataset:
    """The documents of a split, for ``corpora.load_documents``."""
    rows_of = row_source(source)
    splits = rows_of.load()
    taken_from, hashes = resolve_split(source, split, list(splits), train_split, validation_fraction)
    rows = _select(rows_of, splits, taken_from)
    check_text_column(source, rows, text_column)
    with naming_damage(source):
        documents = rows.map(
            _name_rows,
            batched=True,
            batch_size=ROWS_PER_READ,
            writer_batch_size=ROWS_PER_READ,
            with_indices=True,
            input_columns=text_column,
            fn_kwargs={"prefix": f"{rows_of.location}/{taken_from}", "hashes": hashes},
            remove_columns=rows.column_names,
            features=DOCUMENT_FEATURES,
            desc="Reading documents",
        )
    if not len(documents) and hashes == (0.0, 1.0):
        raise ValueError(f"{source} has no text in the column {text_column!r} of its {taken_from} split")
    if not len(documents):
        raise ValueError(
            f"{source} has no validation split, and validation_fraction {validation_fraction:g} leaves no documents "
            f"for {split}: expected more documents or another fraction"
        )
    return documents


def read_first_rows(
    source: str, split: str, max_bytes: int, *, train_split: str, text_column: str, validation_fraction: float
) -> Iterator[Document]:
    """The first documents of a split, as of ``read_rows``, until they have that many bytes; no later row is read."""
    rows_of = row_source(source)
    splits = rows_of.load(streaming=True)
    taken_from, hashes = resolve_split(source, split, list(splits), train_split, validation_fraction)
    with rows_of.naming_errors():
        parts = list(splits.values()) if taken_from == "all" else [splits[taken_from]]
        parts = [part if part.features else part._resolve_features() for part in parts]
    for part in parts:
        check_text_column(source, part, text_column)
    bytes_left = max_bytes
    with rows_of.naming_errors():
        for index, row in enumerate(chain.from_iterable(parts)):
            if is_kept(text := row[text_column], hashes):
                num_bytes = len(text.encode())
                yield Document(f"{rows_of.location}/{taken_from}/{index}", num_bytes, [text])
                bytes_left -= num_bytes
                if bytes_left <= 0:
                    return


def is_split_expression(split: str) -> bool:
    """Whether a split is part of one or a sum of several, which the library does not stream."""
    return "[" in split or "+" in split


def split_names(expression: str) -> list[str]:
    """The splits that an expression names: ``train[:1%]+test`` names train and test."""
    return [part.partition("[")[0].strip() for part in expression.split("+")]


def resolve_split(
    source: str, split: str, splits: list[str], train_split: str, validation_fraction: float
) -> tuple[str, tuple[float, float]]:
    """The split of a dataset to read, and the range ``[low, high)`` of text hashes of the documents to keep.

    Raises:
        ValueError: There is no such split.
    """
    taken_from, hashes = train_split if split == "train" else split, (0.0, 1.0)
    if "validation" not in splits and split in ("train", "validation"):
        taken_from = train_split
        hashes = validation_hashes(split, validation_fraction)
    missing = [name for name in split_names(taken_from) if name not in splits]
    if taken_from != "all" and missing:
        name = split if split in ("train", "validation") else missing[0]
        raise ValueError(
            f"{source} has no {name} split: its splits are {', '.join(splits)} "
            "(without a validation split, part of train is held out)"
        )
    return taken_from, hashes


def check_text_column(source: str, rows: Dataset | IterableDataset, text_column: str) -> None:
    """Raise a ValueError unless the rows have this column and it holds text."""
    features = rows.features or {}
    if features.get(text_column) not in (Value("string"), Value("large_string")):
        raise ValueError(f"{source} has no text column {text_column!r}: its columns are {', '.join(features)}")


def is_kept(text: str | None, hashes: tuple[float, float]) -> bool:
    """Whether a row has text, and its hash is in the range."""
    return bool(text and text.strip()) and hashes[0] <= hash_of_text([text]) < hashes[1]


def _select(rows_of: RowSource, splits: DatasetDict | IterableDatasetDict, split: str) -> Dataset:
    if split == "all":
        return concatenate_datasets(list(splits.values()))
    return splits[split] if split in splits else rows_of.load(split)


def _name_rows(
    texts: list[str | None], indices: list[int], prefix: str, hashes: tuple[float, float]
) -> dict[str, list[str]]:
    kept = [(f"{prefix}/{index}", text) for index, text in zip(indices, texts, strict=True) if is_kept(text, hashes)]
    return {"name": [name for name, _ in kept], "text": [text for _, text in kept]}
