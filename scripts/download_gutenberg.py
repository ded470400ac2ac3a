"""Download the novels of the experiments: ``python scripts/download_gutenberg.py`` fills data/gutenberg.

The 25 books (44 MB of text) are in the public domain in the USA. They come from the copies of Project Gutenberg's
files on GitHub, at fixed commits, without Project Gutenberg's header, license and list of producers. Every text is
compared by its SHA-256 with the one that the experiments read; gutenberg.csv beside this file lists all sources.
"""

import argparse
import csv
import gzip
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.request import urlopen

from alibi_gpt_cli.console import exit_code


BOOKS = Path(__file__).with_name("gutenberg.csv")
SOURCE = "https://raw.githubusercontent.com/GITenberg"
TIMEOUT_SECONDS = 60
_START = re.compile(r"^\*\*\* ?START OF TH(?:IS|E) PROJECT GUTENBERG EBOOK.*\n", re.MULTILINE)
_END = re.compile(
    r"^(?:\*\*\* ?END OF TH(?:IS|E) PROJECT GUTENBERG EBOOK|End of (?:the )?Project Gutenberg)",
    re.MULTILINE | re.IGNORECASE,
)
_PRODUCERS = re.compile(r"\n*(?:Produced by|E-text prepared by|An Anonymous Volunteer).*?\n{3,}", re.DOTALL)
_EDITORS_NOTE = re.compile(r"\[Project Gutenberg Editor's Note:[^]]*\]\n+")


def text_of(raw: bytes) -> str:
    """The text of a book in a file of Project Gutenberg.

    Raises:
        ValueError: The file does not say where the text starts and ends.
    """
    try:
        whole = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        whole = raw.decode("latin-1")
    whole = whole.replace("\r\n", "\n")
    start = _START.search(whole)
    end = start and _END.search(whole, start.end())
    if start is None or end is None:
        raise ValueError("expected a file of Project Gutenberg, got one without its lines of START and END")
    text = whole[start.end() : end.start()]
    if producers := _PRODUCERS.match(text):
        text = text[producers.end() :]
    return _EDITORS_NOTE.sub("", text).strip("\n") + "\n"


def download(book: dict[str, str], output_dir: Path, source: str) -> bool:
    """Write one book, compressed, unless it is already there; returns whether it was written.

    Args:
        book: A row of gutenberg.csv.
        output_dir: Folder that the row's ``file`` is relative to.
        source: URL above the folders of the books.

    Raises:
        OSError: The book cannot be written.
        ValueError: The book cannot be downloaded, or its text differs from that of the experiments.
    """
    path = output_dir / book["file"]
    if path.is_file() and _sha256_of(path) == book["sha256"]:
        return False
    url = "/".join((source, book["repository"], book["commit"], book["path"]))
    try:
        with urlopen(url, timeout=TIMEOUT_SECONDS) as reply:
            text = text_of(reply.read())
    except (OSError, ValueError) as error:
        raise ValueError(f"{url}: {error}") from error
    content = text.encode()
    if (got := hashlib.sha256(content).hexdigest()) != book["sha256"]:
        raise ValueError(f"{url}: expected a text with SHA-256 {book['sha256']}, got {got}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(gzip.compress(content, mtime=0))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return True


def _sha256_of(path: Path) -> str | None:
    """SHA-256 of a compressed text; None if the file is damaged."""
    try:
        return hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()
    except (EOFError, OSError):
        return None


def download_all(output_dir: Path, source: str) -> None:
    """Write all books that are not there yet, one after another.

    Raises:
        OSError, ValueError: As in ``download``; the books before stay.
    """
    with BOOKS.open(newline="", encoding="utf-8") as table:
        books = list(csv.DictReader(table))
    for book in books:
        is_new = download(book, output_dir, source)
        print(f"{'wrote' if is_new else 'kept'} {output_dir / book['file']}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Download all books and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("data/gutenberg"), help="default: %(default)s")
    parser.add_argument("--source", default=SOURCE, help="URL above the folders of the books; default: %(default)s")
    return exit_code(partial(download_all, **vars(parser.parse_args(arguments))))


if __name__ == "__main__":
    sys.exit(main())
