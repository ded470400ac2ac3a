"""The standard library of this interpreter as a corpus that needs no network."""

import hashlib
import os
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from modeling_alibi_gpt.data.documents import Document


STDLIB_SKIPPED_FOLDERS = (
    *("site-packages", "dist-packages", "__pycache__", "config-*"),  # not part of the library, or not text
    *("test", "tests", "idle_test", "__phello__"),  # artificial code
    *("idlelib", "lib2to3", "distutils", "tkinter", "turtledemo", "ensurepip", "msilib", "_pyrepl"),  # often missing
    *("encodings", "pydoc_data"),  # mostly tables
)
STDLIB_SKIPPED_FILES = ("_sysconfigdata*", "turtle.py", "this.py", "antigravity.py")
STDLIB_MIN_FILE_BYTES = 1024
STDLIB_MIN_TRAIN_BYTES = 5_000_000
STDLIB_MIN_VALIDATION_BYTES = 500_000
STDLIB_SALT = "stdlib-v1.90"  # determines the splits; all published results depend on it


def stdlib_documents(split: str) -> Iterator[Document]:
    """The modules of a split, sorted by name. The text of a module is its files, each after a line with its path.

    Raises:
        ValueError: This Python ships without its sources.
    """
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
            f"the standard library at {root} has {num_bytes['train'] / 1e6:.1f} MB for training and "
            f"{num_bytes['validation'] / 1e6:.1f} MB for validation, expected at least "
            f"{STDLIB_MIN_TRAIN_BYTES / 1e6:.1f} and {STDLIB_MIN_VALIDATION_BYTES / 1e6:.1f}: this Python ships "
            "without its sources; use another Python, or text:GLOB"
        )
    for module, text in texts.items():
        if split in ("all", _stdlib_split(module)):
            yield Document(module, len(text.encode()), [text])


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
    """Top-level module of a file. C and Python twins such as ``io`` and ``_pyio`` are one, since they share text."""
    module = relative.parts[0].removesuffix(".py")
    return module.lstrip("_").removeprefix("py").lstrip("_") or module


def _stdlib_split(module: str) -> str:
    # Hash the name, not the contents, so that a module stays in its split from one Python version to the next.
    digest = hashlib.sha256(f"{STDLIB_SALT}:{module}".encode()).digest()
    return {0: "validation", 1: "test"}.get(int.from_bytes(digest[:8], "big") % 10, "train")
