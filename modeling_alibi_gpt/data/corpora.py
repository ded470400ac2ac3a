"""Where text comes from: the interpreter's own standard library, files of the user's, or a dataset of the Hub."""

import glob
import gzip
import hashlib
import os
import sysconfig
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetsError

from modeling_alibi_gpt.data.dataset_cache import cached_dataset, naming_damage, os_errors_in_the_open


SPLITS = ("train", "validation", "test", "all")
DOCUMENT_FEATURES = Features({"name": Value("string"), "text": Value("string")})

ROW_SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".arrow")
STDLIB_SKIPPED_FOLDERS = (
    *("site-packages", "dist-packages", "__pycache__", "config-*"),  # not the library, or not text
    *("test", "tests", "idle_test", "__phello__"),  # made up
    *("idlelib", "lib2to3", "distutils", "tkinter", "turtledemo", "ensurepip", "msilib", "_pyrepl"),  # not everywhere
    *("encodings", "pydoc_data"),  # tables
)
STDLIB_SKIPPED_FILES = ("_sysconfigdata*", "turtle.py", "this.py", "antigravity.py")
STDLIB_MIN_FILE_BYTES = 1024
STDLIB_MIN_TRAIN_BYTES = 5_000_000
STDLIB_MIN_VALIDATION_BYTES = 500_000
STDLIB_SALT = "stdlib-v1.90"  # decides the split: every published figure depends on it


def load_documents(source: str, split: str, *, validation_fraction: float = 0.1, text_column: str = "text") -> Dataset:
    """Documents of one split of a corpus, a row each, with the columns ``name`` and ``text``.

    The result lies in the datasets cache under a fingerprint of its contents: a file that changed is read anew.

    Args:
        source: ``stdlib`` (Python source code: the standard library of this interpreter, a document a module),
            ``text:GLOB`` (UTF-8 files, plain or .gz, a document each, in the order of their paths; ``**`` crosses
            folders) or ``hub:NAME[:CONFIG]`` (a dataset of the Hugging Face Hub or a folder, a document a row).
        split: ``train``, ``validation``, ``test`` or ``all``.
        validation_fraction: What validates of a source without a validation split: of every ``text:`` document this
            fraction, its tail; of a ``hub:`` dataset this fraction of the documents of its train split, by a hash of
            their texts, so that each stays where it is when others are added.
        text_column: Column of a ``hub:`` dataset that holds the text.

    Raises:
        ValueError: The source is unknown, missing, empty, not text or too small, or has no such split or column.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    kind, _, location = source.partition(":")
    if source == "stdlib":
        return _cached_documents(partial(_stdlib_documents, split), source, split)
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be at least 0 and below 1, got {validation_fraction}")
    if kind == "text" and location:
        return _text_documents(location, split, validation_fraction)
    if kind == "hub" and location:
        return _hub_documents(location, split, text_column, validation_fraction)
    raise ValueError(f"unknown source {source!r}: expected stdlib, text:GLOB or hub:NAME[:CONFIG]")


def describe_documents(documents: Iterable[dict[str, str]]) -> dict[str, Any]:
    """What a record says of its data: ``num_documents``, ``num_bytes`` (UTF-8, texts only) and ``fingerprint``.

    The fingerprint is the first 16 hex digits of a sha256 over names and texts, so equal data have equal
    fingerprints on every machine.
    """
    digest = hashlib.sha256()
    num_documents = num_bytes = 0
    for document in documents:
        name, text = document["name"].encode(), document["text"].encode()
        for part in (name, text):
            digest.update(len(part).to_bytes(8, "big"))  # so that a text cannot pass for a name
            digest.update(part)
        num_documents += 1
        num_bytes += len(text)
    return {"num_documents": num_documents, "num_bytes": num_bytes, "fingerprint": digest.hexdigest()[:16]}


def _cached_documents(generate: Callable[[], Iterator[dict[str, str]]], source: str, split: str) -> Dataset:
    # A first pass checks and hashes the documents, the second, on a cache miss only, writes them: neither holds them.
    description = describe_documents(generate())
    if not description["num_documents"]:
        raise ValueError(f"the {split} split of {source} is empty: expected more text or another validation_fraction")
    return cached_dataset(generate, DOCUMENT_FEATURES, description["fingerprint"])


def _stdlib_documents(split: str) -> Iterator[dict[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    files_of = defaultdict(list)
    for path in _stdlib_files(root):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a few modules declare another encoding; the corpus is UTF-8
        relative = path.relative_to(root)
        files_of[_stdlib_module(relative)].append(f"# {relative.as_posix()}\n{text}")
    texts = {module: "\n".join(files) for module, files in sorted(files_of.items())}

    num_bytes: Counter[str] = Counter()
    for module, text in texts.items():
        num_bytes[_stdlib_split(module)] += len(text.encode())
    if num_bytes["train"] < STDLIB_MIN_TRAIN_BYTES or num_bytes["validation"] < STDLIB_MIN_VALIDATION_BYTES:
        raise ValueError(
            f"the standard library at {root} holds {num_bytes['train'] / 1e6:.1f} MB to train and "
            f"{num_bytes['validation'] / 1e6:.1f} MB to validate on, expected at least "
            f"{STDLIB_MIN_TRAIN_BYTES / 1e6:.1f} and {STDLIB_MIN_VALIDATION_BYTES / 1e6:.1f}: this Python comes "
            "without its sources, take another or use text:GLOB"
        )
    for module, text in texts.items():
        if split in ("all", _stdlib_split(module)):
            yield {"name": module, "text": text}


def _stdlib_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not _matches(name, STDLIB_SKIPPED_FOLDERS))
        for name in sorted(names):
            path = Path(folder, name)
            if (
                path.suffix == ".py"
                and not _matches(name, STDLIB_SKIPPED_FILES)
                and path.stat().st_size >= STDLIB_MIN_FILE_BYTES
            ):
                yield path


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _stdlib_module(relative: Path) -> str:
    """Top-level module of a file, where twins in two languages (``io``, ``_pyio``) are one: they share their text."""
    module = relative.parts[0].removesuffix(".py")
    return module.lstrip("_").removeprefix("py").lstrip("_") or module


def _stdlib_split(module: str) -> str:
    # By name and not by contents, so that a module stays in its split from one Python version to the next.
    digest = hashlib.sha256(f"{STDLIB_SALT}:{module}".encode()).digest()
    return {0: "validation", 1: "test"}.get(int.from_bytes(digest[:8], "big") % 10, "train")


def _text_documents(pattern: str, split: str, validation_fraction: float) -> Dataset:
    if split == "test":
        raise ValueError("a text: source has no test split: name the test files in a source of their own, split all")
    matches = glob.glob(os.path.expanduser(pattern), recursive=True)
    paths = sorted(Path(match).absolute() for match in matches if os.path.isfile(match))
    if not paths:
        raise ValueError(f"no file matches {pattern!r}: expected a path or a glob of .txt or .gz files")
    for path in paths:
        if Path(path.name.removesuffix(".gz")).suffix in ROW_SUFFIXES:
            raise ValueError(
                f"{path} holds rows, and text: would read it as one text: hub:{path.parent} reads the rows of a "
                "folder, with text_column the name of their text"
            )
    return _cached_documents(partial(_read_documents, paths, split, validation_fraction), f"text:{pattern}", split)


def _read_documents(paths: list[Path], split: str, validation_fraction: float) -> Iterator[dict[str, str]]:
    # Named from their common folder, so that the fingerprint of a corpus does not depend on where it lies.
    root = os.path.commonpath([path.parent for path in paths])
    for path in paths:
        text = _read_text(path)
        if split != "all":
            cut = _validation_start(text, validation_fraction)
            text = text[:cut] if split == "train" else text[cut:]
        if text:
            yield {"name": path.relative_to(root).as_posix(), "text": text}


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}): compress it again") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text: expected UTF-8, got 0x{error.object[error.start]:02x}") from error
    if "\0" in text:
        raise ValueError(f"{path} is not text: expected UTF-8, got a NUL byte")
    if not text.strip():
        raise ValueError(f"{path} is empty: expected text, leave the file out")
    return text


def _validation_start(text: str, validation_fraction: float) -> int:
    """First character of the tail that validates: a line's first where a line ends near enough before the cut.

    Near enough means that both sides keep at least half of what the fraction gives them.
    """
    cut = round(len(text) * (1 - validation_fraction))
    reach = min(cut, len(text) - cut) // 2
    after_newline = text.rfind("\n", cut - reach, cut) + 1
    return after_newline or cut


def _hub_documents(location: str, split: str, text_column: str, validation_fraction: float) -> Dataset:
    splits = _hub_splits(location)
    taken_from, hashes = split, (0.0, 1.0)
    if "validation" not in splits and split in ("train", "validation"):
        taken_from = "train"
        hashes = (0.0, validation_fraction) if split == "validation" else (validation_fraction, 1.0)
    if split != "all" and taken_from not in splits:
        raise ValueError(
            f"hub:{location} has no {split} split: its splits are {', '.join(splits)}, "
            "and without a validation split a share of train validates"
        )
    rows = concatenate_datasets(list(splits.values())) if split == "all" else splits[taken_from]
    if rows.features.get(text_column) not in (Value("string"), Value("large_string")):
        columns = ", ".join(rows.column_names)
        raise ValueError(f"hub:{location} has no column of text {text_column!r}: its columns are {columns}")
    with naming_damage(f"hub:{location}"):
        documents = rows.map(
            _name_rows,
            batched=True,
            with_indices=True,
            input_columns=text_column,
            fn_kwargs={"prefix": f"{location}/{taken_from}", "hashes": hashes},
            remove_columns=rows.column_names,
            features=DOCUMENT_FEATURES,
            desc="Reading documents",
        )
    if not len(documents) and hashes == (0.0, 1.0):
        raise ValueError(f"hub:{location} holds no text in the column {text_column!r} of its {split} split")
    if not len(documents):
        raise ValueError(
            f"hub:{location} has no validation split, and the {split} share of its documents is empty with "
            f"validation_fraction {validation_fraction:g}: expected more documents or another fraction"
        )
    return documents


def _hub_splits(location: str) -> DatasetDict:
    name, _, config = location.partition(":")
    try:
        with os_errors_in_the_open(), naming_damage(f"hub:{location}"):
            return load_dataset(name, config or None, trust_remote_code=False)
    except (ConnectionError, FileNotFoundError, RuntimeError, DatasetsError) as error:
        raise ValueError(
            f"hub:{location} cannot be read ({error.__cause__ or error}): check the name and the network, set "
            "HF_HUB_OFFLINE=1 to take a copy from the cache at once, or use text:GLOB"
        ) from error


def _name_rows(
    texts: list[str | None], indices: list[int], prefix: str, hashes: tuple[float, float]
) -> dict[str, list[str]]:
    kept = [
        (f"{prefix}/{index}", text)
        for index, text in zip(indices, texts, strict=True)
        if text and text.strip() and hashes[0] <= _hash(text) < hashes[1]
    ]
    return {"name": [name for name, _ in kept], "text": [text for _, text in kept]}


def _hash(text: str) -> float:
    """A number from 0 up to, but not including, 1 that depends on the text alone."""
    # Of 53 bits, which is what a float holds: of more, the largest would round up to 1.
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11) / 2**53
