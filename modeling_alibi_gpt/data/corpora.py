"""Text sources: the interpreter's standard library, local files, or a dataset on the Hub."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal

from datasets import Dataset

from modeling_alibi_gpt.data.dataset_cache import cached_dataset
from modeling_alibi_gpt.data.documents import Document, describe, describe_documents, remember_description
from modeling_alibi_gpt.data.row_datasets import DOCUMENT_FEATURES, is_split_expression, read_first_rows, read_rows
from modeling_alibi_gpt.data.stdlib_corpus import stdlib_documents
from modeling_alibi_gpt.data.text_files import matching_files, read_text_files, text_paths


__all__ = [
    "SOURCES",
    "SPLITS",
    "check_split",
    "describe_documents",
    "is_of_files",
    "is_share_of_train",
    "load_documents",
    "shared_file",
]

SPLITS = ("train", "validation", "test", "all")
SOURCES = "stdlib, text:GLOB, jsonl:GLOB, parquet:GLOB or hub:NAME[:CONFIG][@REVISION]"
ValidationUnit = Literal["tail", "document"]
_SPLIT = re.compile(r"[\w.]+(\[[^\[\]+]*\])?(\s*\+\s*[\w.]+(\[[^\[\]+]*\])?)*")


def load_documents(
    source: str,
    split: str,
    *,
    validation_fraction: float = 0.1,
    validation_unit: ValidationUnit | None = None,
    text_column: str = "text",
    train_split: str = "train",
    max_bytes: int | None = None,
) -> Dataset:
    """Load the documents of one split of a corpus, as a dataset with the columns ``name`` and ``text``.

    Each document is one row; a document longer than ``documents.ROW_CHARACTERS`` spans several rows with the same
    name. The result is cached by ``datasets`` under a fingerprint of its contents, so a changed file is read again.

    Args:
        source: ``stdlib`` (the Python source of this interpreter's standard library, one document per module),
            ``text:GLOB`` (UTF-8 files, plain or .gz, one document per file, sorted by path; ``**`` matches nested
            folders, commas separate several globs), ``jsonl:GLOB`` or ``parquet:GLOB`` (one document per row), or
            ``hub:NAME[:CONFIG][@REVISION]`` (a Hugging Face Hub dataset or a local folder, one document per row).
        split: ``train``, ``validation``, ``test`` or ``all``. Row sources also accept any other split name, or a
            ``datasets`` expression such as ``test[:10%]``.
        validation_fraction: Fraction held out for validation if the source has no validation split.
        validation_unit: ``tail`` holds out this fraction at the end of every document. ``document`` holds out this
            fraction of the documents, chosen by a hash of their text, so that adding documents does not move the
            others. None means ``tail`` for ``text:`` and ``document`` for rows.
        text_column: Column of a row source that holds the text.
        train_split: Split or expression of a row source that ``train`` reads; part of it may be held out.
        max_bytes: Approximate limit on what is read and fingerprinted, in bytes. ``stdlib`` and split expressions are
            read whole.

    Raises:
        ValueError: The source is unknown, missing, empty, not text or too small, or has no such split or column.
    """
    check_split(source, split)
    if source == "stdlib":
        return _cached_documents(partial(stdlib_documents, split), source, split)
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be at least 0 and below 1, got {validation_fraction}")
    kind, _, location = source.partition(":")
    if kind == "text":
        return _text_documents(location, split, validation_fraction, validation_unit or "tail", max_bytes)
    if validation_unit == "tail":
        raise ValueError(f"validation_unit tail applies to text: sources, but {source} holds rows: expected document")
    how: dict[str, Any] = {"train_split": train_split, "text_column": text_column}
    how["validation_fraction"] = validation_fraction
    if max_bytes is None or is_split_expression(train_split if split == "train" else split):
        return read_rows(source, split, **how)
    return _cached_documents(partial(read_first_rows, source, split, max_bytes, **how), source, split)


def is_of_files(source: str) -> bool:
    """Whether a source is a set of local files, which define no splits."""
    return source.startswith(("text:", "jsonl:", "parquet:"))


def shared_file(source: str, other: str) -> str | None:
    """Path of a file that two sources both read, whatever their spelling and links; None if there is none."""
    if not (is_of_files(source) and is_of_files(other)):
        return None
    try:
        found = [set(map(os.path.realpath, matching_files(each.partition(":")[2]))) for each in (source, other)]
    except ValueError:  # the files of one of them are not here
        return None
    return min(set.intersection(*found), default=None)


def is_share_of_train(source: str, documents: Dataset) -> bool:
    """Whether documents of the split ``validation`` were held out of the text for training.

    Args:
        source: The source, which may define a validation split of its own.
        documents: What ``load_documents`` read for the split ``validation``.
    """
    kind, _, location = source.partition(":")
    return is_of_files(source) or (kind == "hub" and not documents[0]["name"].startswith(f"{location}/validation/"))


def check_split(source: str, split: str) -> None:
    """Raise a ValueError unless the source is of a known kind and can have this split."""
    kind, _, location = source.partition(":")
    if source != "stdlib" and (kind not in ("text", "jsonl", "parquet", "hub") or not location):
        raise ValueError(f"unknown source {source!r}: expected {SOURCES}")
    is_expression = bool(_SPLIT.fullmatch(split)) and (kind == "hub" or (kind != "text" and "[" in split))
    if split not in SPLITS and (source == "stdlib" or not is_expression):
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if kind == "text" and split == "test":
        raise ValueError("a text: source has no test split: pass the test files as a separate source with split all")


def _cached_documents(read: Callable[[], Iterator[Document]], source: str, split: str) -> Dataset:
    # The first pass checks and hashes the documents; the second writes them on a cache miss. Neither holds them all.
    description = describe(read())
    if not description["num_documents"]:
        raise ValueError(f"the {split} split of {source} is empty: expected more text or another validation_fraction")
    documents = cached_dataset(partial(_rows, read), DOCUMENT_FEATURES, description["fingerprint"])
    remember_description(documents, description)
    return documents


def _rows(read: Callable[[], Iterable[Document]]) -> Iterator[dict[str, str]]:
    return ({"name": document.name, "text": row} for document in read() for row in document.rows)


def _text_documents(
    patterns: str, split: str, validation_fraction: float, unit: ValidationUnit, max_bytes: int | None
) -> Dataset:
    paths, is_document = text_paths(patterns), unit == "document"
    read = partial(
        read_text_files, paths, split, validation_fraction, whole_documents=is_document, max_bytes=max_bytes
    )
    return _cached_documents(read, f"text:{patterns}", split)
