"""Python source code as a corpus that is there without any network: this interpreter's own standard library."""

import hashlib
import os
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from modeling_alibi_gpt.data.documents import Document


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


def stdlib_documents(split: str) -> Iterator[Document]:
    """The modules of a split in the order of their names, each with its files under their paths.

    Raises:
        ValueError: This Python comes without its sources.
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
            f"the standard library at {root} holds {num_bytes['train'] / 1e6:.1f} MB to train and "
            f"{num_bytes['validation'] / 1e6:.1f} MB to validate on, expected at least "
            f"{STDLIB_MIN_TRAIN_BYTES / 1e6:.1f} and {STDLIB_MIN_VALIDATION_BYTES / 1e6:.1f}: this Python comes "
            "without its sources, take another or use text:GLOB"
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
    """Top-level module of a file, where twins in two languages (``io``, ``_pyio``) are one: they share their text."""
    module = relative.parts[0].removesuffix(".py")
    return module.lstrip("_").removeprefix("py").lstrip("_") or module


def _stdlib_split(module: str) -> str:
    # By name and not by contents, so that a module stays in its split from one Python version to the next.
    digest = hashlib.sha256(f"{STDLIB_SALT}:{module}".encode()).digest()
    return {0: "validation", 1: "test"}.get(int.from_bytes(digest[:8], "big") % 10, "train")
