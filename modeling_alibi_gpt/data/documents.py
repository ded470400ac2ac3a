"""Documents: a name and a text that may be too long to hold in memory."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset


# A longer document spans several rows with the same name, so that no text has to be held in memory whole.
ROW_CHARACTERS = 2**24
PIECE_CHARACTERS = 250_000  # a tokenizer uses about 160 bytes of memory per character, and one core per text
ROWS_PER_READ = 64
LONE_NEWLINE = re.compile(r"(?<=\S\n)(?=\S)")
LONE_SPACE = re.compile(r"(?<=\S)(?= \S)")

_descriptions: dict[str, dict[str, Any]] = {}  # by the fingerprint of the dataset


@dataclass(frozen=True)
class Document:
    """A document while it is read.

    Attributes:
        name: Identifies the document in its corpus.
        num_bytes: Size of its text in UTF-8.
        rows: Its text in parts of about ``ROW_CHARACTERS`` characters; can be read once.
    """

    name: str
    num_bytes: int
    rows: Iterable[str]


def find_seam(text: str, start: int, stop: int) -> int:
    """First position from ``start`` to ``stop`` where a byte-level BPE can cut a text without changing its tokens.

    This is the position after a lone newline or, if there is none, before a lone space; ``stop`` if there is neither.
    """
    for seam in (LONE_NEWLINE, LONE_SPACE):
        if found := seam.search(text, start, stop):
            return found.start()
    return stop


def rows_of_text(chunks: Iterable[str], num_characters: int | None = None) -> Iterator[str]:
    """Regroup a text that arrives in chunks of any size into rows that end at seams.

    A row has about ``num_characters`` characters, by default ``ROW_CHARACTERS``; a shorter text is one row.
    """
    num_characters = num_characters or ROW_CHARACTERS
    row = ""
    for chunk in chunks:
        row += chunk
        while len(row) > num_characters + PIECE_CHARACTERS:
            cut = find_seam(row, num_characters, num_characters + PIECE_CHARACTERS)
            yield row[:cut]
            row = row[cut:]
    if row:
        yield row


def pieces_of_row(row: str) -> Iterator[tuple[int, str]]:
    """Cut a row at seams into pieces, each with its start in characters, to encode it in bounded memory."""
    start = 0
    while len(row) - start > 2 * PIECE_CHARACTERS:
        cut = find_seam(row, start + PIECE_CHARACTERS, start + 2 * PIECE_CHARACTERS)
        yield start, row[start:cut]
        start = cut
    yield start, row[start:]


def hash_of_text(chunks: Iterable[str]) -> float:
    """Hash a text to a number in [0, 1). The result does not depend on how the text is cut into chunks."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk.encode())
    # 53 bits are the precision of a float; with more, the largest hashes would round up to 1.
    return (int.from_bytes(digest.digest()[:8], "big") >> 11) / 2**53


def validation_hashes(split: str, validation_fraction: float) -> tuple[float, float]:
    """Range ``[low, high)`` of the text hashes of the documents in ``train`` or ``validation``."""
    return (0.0, validation_fraction) if split == "validation" else (validation_fraction, 1.0)


def describe(documents: Iterable[Document]) -> dict[str, Any]:
    """``num_documents``, ``num_bytes`` and ``fingerprint``, as returned by ``describe_documents``."""
    digest = hashlib.sha256()
    num_documents = num_bytes = 0
    for document in documents:
        name = document.name.encode()
        # The lengths come first, so that a name and a text cannot be confused.
        digest.update(len(name).to_bytes(8, "big") + name + document.num_bytes.to_bytes(8, "big"))
        for row in document.rows:
            digest.update(row.encode())
        num_documents += 1
        num_bytes += document.num_bytes
    return {"num_documents": num_documents, "num_bytes": num_bytes, "fingerprint": digest.hexdigest()[:16]}


def describe_documents(documents: Dataset) -> dict[str, Any]:
    """Describe data for a record: ``num_documents``, ``num_bytes`` (UTF-8, texts only) and ``fingerprint``.

    The fingerprint is the first 16 hex digits of a SHA-256 over names and texts, so equal data have equal
    fingerprints on every machine. Consecutive rows with the same name are one document.
    """
    key = documents._fingerprint
    if key not in _descriptions:
        _descriptions[key] = describe(_documents(documents))
    return dict(_descriptions[key])


def remember_description(documents: Dataset, description: dict[str, Any]) -> None:
    """Store a description, so that ``describe_documents`` does not read the documents again."""
    _descriptions[documents._fingerprint] = dict(description)


def document_rows(documents: Dataset) -> Iterator[tuple[int, str]]:
    """The number of its document and the text of every row, in order. Without names, each row is a document."""
    number, before = -1, None
    for batch in record_batches(documents):
        names = batch["name"].to_pylist() if "name" in documents.column_names else [None] * len(batch)
        for name, text in zip(names, batch["text"], strict=True):
            number += name is None or name != before
            before = name
            yield number, text.as_py()


def record_batches(rows: Dataset, rows_per_read: int | None = None) -> Iterator[pa.Table]:
    """All rows in order, in tables of ``rows_per_read`` rows or, with None, in the batches they were written in.

    Cached files are read directly: the pages of a memory map would count towards the memory of the process until the
    system reclaims them.
    """
    paths = [file["filename"] for file in rows.cache_files]
    if rows._indices is not None or not paths or len(rows) != sum(map(_num_rows, paths)):
        yield from rows.with_format("arrow").iter(batch_size=rows_per_read or ROWS_PER_READ)
        return
    batches = (pa.Table.from_batches([batch]) for path in paths for batch in _batches_of_file(path))
    if rows_per_read is None:
        yield from batches
        return
    held = next(batches)
    for batch in chain(batches, [None]):
        while len(held) >= rows_per_read or (batch is None and len(held)):
            yield held[:rows_per_read]
            held = held[rows_per_read:]
        if batch is not None:
            held = pa.concat_tables([held, batch])


def _batches_of_file(path: str) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(path) as file, pa.ipc.open_stream(file) as batches:
        yield from batches


def num_bytes_of_rows(documents: Dataset) -> list[int]:
    """UTF-8 bytes of the text of each row, computed without decoding the texts."""
    texts = documents.with_format("arrow")
    lengths = [pc.binary_length(rows["text"]).to_pylist() for rows in texts.iter(batch_size=ROWS_PER_READ)]
    return [num_bytes for batch in lengths for num_bytes in batch]


def _num_rows(path: str) -> int:
    with pa.memory_map(path) as file, pa.ipc.open_stream(file) as batches:
        return batches.read_all().num_rows


def _documents(documents: Dataset) -> Iterator[Document]:
    lengths = [sum(length for _, length in rows) for _, rows in groupby(_lengths(documents), key=lambda row: row[0])]
    names = [name for name, _ in groupby(documents["name"])]
    rows = groupby(document_rows(documents), key=lambda row: row[0])
    for name, num_bytes, (_, texts) in zip(names, lengths, rows, strict=True):
        yield Document(name, num_bytes, (text for _, text in texts))


def _lengths(documents: Dataset) -> Iterator[tuple[str, int]]:
    return zip(documents["name"], num_bytes_of_rows(documents), strict=True)
