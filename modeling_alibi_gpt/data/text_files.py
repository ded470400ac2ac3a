"""Text files, plain or gzipped, read in bounded memory: one document per file, or its head or tail."""

import codecs
import glob
import gzip
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from modeling_alibi_gpt.data.documents import (
    PIECE_CHARACTERS,
    Document,
    find_seam,
    hash_of_text,
    rows_of_text,
    validation_hashes,
)


ROW_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".arrow": "hub"}
READ_BYTES = 2**20


def matching_files(patterns: str) -> list[Path]:
    """Sorted absolute paths of the files that match any of several comma-separated globs.

    Raises:
        ValueError: One of the patterns matches no file.
    """
    paths: set[Path] = set()
    for pattern in patterns.split(","):
        matches = glob.glob(os.path.expanduser(pattern), recursive=True)
        found = {Path(match).absolute() for match in matches if os.path.isfile(match)}
        if not found:
            raise ValueError(f"no file matches {pattern!r}: expected a path or a glob, several separated by commas")
        paths |= found
    return sorted(paths)


def text_paths(patterns: str) -> list[Path]:
    """Files of a ``text:`` source.

    Raises:
        ValueError: A pattern matches no file, or matches a file that holds rows.
    """
    paths = matching_files(patterns)
    for path in paths:
        kind = ROW_SUFFIXES.get(Path(path.name.removesuffix(".gz")).suffix)
        if kind is not None:
            remedy = f"{kind}:{path.parent if kind == 'hub' else path}"
            raise ValueError(
                f"{path} holds rows, but text: reads a file as one text: use {remedy}, and set text_column to the "
                "column that holds the text"
            )
    return paths


def relative_names(paths: list[Path]) -> list[str]:
    """Paths relative to the common folder, so that the fingerprint of a corpus does not depend on its location."""
    root = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(root).as_posix() for path in paths]


def read_text_files(
    paths: list[Path],
    split: str,
    validation_fraction: float,
    *,
    whole_documents: bool = False,
    max_bytes: int | None = None,
) -> Iterator[Document]:
    """Read the files in order: all of each (``split`` ``all``), its head (``train``) or its tail (``validation``).

    With ``whole_documents``, ``train`` and ``validation`` are instead disjoint sets of files, chosen by a hash of
    their text. With ``max_bytes``, the text ends at the first seam after that many bytes and no later file is opened.

    Raises:
        ValueError: A file is not UTF-8 text, is a damaged gzip file or is empty.
    """
    bytes_left = math.inf if max_bytes is None else max_bytes
    for path, name in zip(paths, relative_names(paths), strict=True):
        if bytes_left <= 0:
            return
        document = None
        if max_bytes is not None and (split == "all" or (split == "train" and not whole_documents)):
            document = _head(path, name, split, validation_fraction, bytes_left)
        document = document or _document(path, name, split, validation_fraction, whole_documents)
        if document is not None:
            bytes_left -= document.num_bytes
            yield document


def _document(path: Path, name: str, split: str, validation_fraction: float, whole_documents: bool) -> Document | None:
    """The part of a file that belongs to a split, or None."""
    chunks = _chunks(path)
    is_blank, num_characters = True, 0
    for chunk in chunks():
        is_blank = is_blank and not chunk.strip()
        num_characters += len(chunk)
    if is_blank:
        raise ValueError(f"{path} is empty: expected text; leave the file out")
    start, stop = 0, num_characters
    if split != "all" and whole_documents:
        low, high = validation_hashes(split, validation_fraction)
        stop = num_characters if low <= hash_of_text(chunks()) < high else 0
    elif split != "all":
        cut = _validation_start(chunks(), num_characters, validation_fraction)
        start, stop = (0, cut) if split == "train" else (cut, num_characters)
    return _part(chunks, name, start, stop)


def _part(chunks: Callable[[], Iterable[str]], name: str, start: int, stop: int) -> Document | None:
    num_bytes = sum(len(chunk.encode()) for chunk in _between(chunks(), start, stop))
    return Document(name, num_bytes, rows_of_text(_between(chunks(), start, stop))) if num_bytes else None


def _head(path: Path, name: str, split: str, validation_fraction: float, max_bytes: float) -> Document | None:
    """The first ``max_bytes`` of a file, up to a seam; None unless they are certain to end before the validation tail.

    Also None if the file ends first.
    """
    num_bytes = num_characters = 0
    is_blank = True
    for chunk in read_chunks(path):
        if num_bytes >= max_bytes and chunk:
            break
        is_blank = is_blank and not chunk.strip()
        num_characters += len(chunk)
        num_bytes += len(chunk.encode())
    else:
        return None
    stop = num_characters + find_seam(chunk, 0, min(len(chunk), PIECE_CHARACTERS))
    if split == "train":
        # An unread character has at most four bytes. The length of a gzipped text is unknown, so assume nothing more.
        bytes_unread = 0 if path.suffix == ".gz" else path.stat().st_size - num_bytes - len(codecs.BOM_UTF8)
        least_characters = num_characters + bytes_unread / 4
        if stop > _first_validation_start(least_characters, validation_fraction):
            return None
    return None if is_blank else _part(partial(read_chunks, path), name, 0, stop)


def _chunks(path: Path) -> Callable[[], Iterable[str]]:
    """A repeatable reader of the text of a file: from memory if it fits one row, else from disk."""
    rows = rows_of_text(read_chunks(path))
    first = next(rows, "")
    return partial(read_chunks, path) if next(rows, None) is not None else lambda: [first]


def read_chunks(path: Path) -> Iterator[str]:
    """The text of a file in chunks of about ``READ_BYTES``.

    Raises:
        ValueError: The file is not UTF-8 text, or is a damaged gzip file.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while data := file.read(READ_BYTES):
                yield _checked(decoder.decode(data), path)
        yield _checked(decoder.decode(b"", final=True), path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a valid gzip file ({error}): compress it again") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text: expected UTF-8, got 0x{error.object[error.start]:02x}") from error


def _checked(chunk: str, path: Path) -> str:
    if "\0" in chunk:
        raise ValueError(f"{path} is not text: expected UTF-8, got a NUL byte")
    return chunk


def _between(chunks: Iterable[str], start: int, stop: int) -> Iterator[str]:
    """The characters from ``start`` to ``stop`` of a text that arrives in chunks."""
    position = 0
    for chunk in chunks:
        if part := chunk[max(0, start - position) : max(0, stop - position)]:
            yield part
        position += len(chunk)
        if position >= stop:
            return


def _validation_start(chunks: Iterable[str], num_characters: int, validation_fraction: float) -> int:
    """First character of the validation tail, moved back to the start of a line if one is close enough.

    Close enough means that both sides keep at least half of the share that the fraction gives them.
    """
    cut = round(num_characters * (1 - validation_fraction))
    reach = min(cut, num_characters - cut) // 2
    position, after_newline = 0, 0
    for chunk in chunks:
        found = chunk.rfind("\n", max(0, cut - reach - position), max(0, cut - position))
        if found >= 0:
            after_newline = position + found + 1
        position += len(chunk)
    return after_newline or cut


def _first_validation_start(num_characters: float, validation_fraction: float) -> float:
    """Lower bound on ``_validation_start`` for every text of at least ``num_characters`` characters."""
    return num_characters * max(1 - 1.5 * validation_fraction, (1 - validation_fraction) / 2) - 1
