"""Where text comes from: the interpreter's own standard library, files of the user's, or a dataset of the Hub."""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal

from datasets import Dataset

from modeling_alibi_gpt.data.dataset_cache import cached_dataset
from modeling_alibi_gpt.data.documents import Document, describe, describe_documents, remember_description
from modeling_alibi_gpt.data.row_datasets import DOCUMENT_FEATURES, is_split_expression, read_first_rows, read_rows
from modeling_alibi_gpt.data.stdlib_corpus import stdlib_documents
from modeling_alibi_gpt.data.text_files import read_text_files, text_paths


__all__ = ["SOURCES", "SPLITS", "check_split", "describe_documents", "is_of_files", "load_documents"]

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
    """Documents of one split of a corpus, with the columns ``name`` and ``text``.

    A document is a row, and one of more than ``documents.ROW_CHARACTERS`` several rows of the same name. The result
    lies in the datasets cache under a fingerprint of its contents: a file that changed is read anew.

    Args:
        source: ``stdlib`` (Python source code: the standard library of this interpreter, a document a module),
            ``text:GLOB`` (UTF-8 files, plain or .gz, a document each, in the order of their paths; ``**`` crosses
            folders, commas separate several globs), ``jsonl:GLOB`` and ``parquet:GLOB`` (files of rows, a document a
            row) or ``hub:NAME[:CONFIG][@REVISION]`` (a dataset of the Hugging Face Hub or a folder, likewise).
        split: ``train``, ``validation``, ``test`` or ``all``; of rows also the name of any other split, or an
            expression of ``datasets`` such as ``test[:10%]``.
        validation_fraction: What validates of a source without a validation split.
        validation_unit: ``tail`` is this fraction of every document, its end; ``document`` this fraction of the
            documents, by a hash of their texts, so that each stays where it is when others are added. None is
            ``tail`` for ``text:`` and ``document`` for rows.
        text_column: Column of rows that holds the text.
        train_split: What ``train`` is of rows: a split or an expression, of which a share may validate.
        max_bytes: Of a longer source only about so much is read, and only that is in the fingerprint; ``stdlib`` and
            expressions of splits are read whole.

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
        raise ValueError(f"validation_unit tail is of text: sources, {source} holds rows: expected document")
    how: dict[str, Any] = {"train_split": train_split, "text_column": text_column}
    how["validation_fraction"] = validation_fraction
    if max_bytes is None or is_split_expression(train_split if split == "train" else split):
        return read_rows(source, split, **how)
    return _cached_documents(partial(read_first_rows, source, split, max_bytes, **how), source, split)


def is_of_files(source: str) -> bool:
    """Whether a source is files that its user chose, without splits of their own."""
    return source.startswith(("text:", "jsonl:", "parquet:"))


def check_split(source: str, split: str) -> None:
    """Raise a ValueError unless the source is of a known kind, and can have such a split."""
    kind, _, location = source.partition(":")
    if source != "stdlib" and (kind not in ("text", "jsonl", "parquet", "hub") or not location):
        raise ValueError(f"unknown source {source!r}: expected {SOURCES}")
    is_expression = bool(_SPLIT.fullmatch(split)) and (kind == "hub" or (kind != "text" and "[" in split))
    if split not in SPLITS and (source == "stdlib" or not is_expression):
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if kind == "text" and split == "test":
        raise ValueError("a text: source has no test split: name the test files in a source of their own, split all")


def _cached_documents(read: Callable[[], Iterator[Document]], source: str, split: str) -> Dataset:
    # A first pass checks and hashes the documents, the second, on a cache miss only, writes them: neither holds them.
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
