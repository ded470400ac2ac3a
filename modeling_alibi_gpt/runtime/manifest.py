"""Manifest of a folder: names, sizes and checksums of its files. It is written last and reveals damage."""

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from modeling_alibi_gpt.runtime.atomic import write_json
from modeling_alibi_gpt.runtime.parsing import read_mapping


MANIFEST_FILE = "manifest.json"


def write_manifest(folder: Path, paths: Iterable[Path] | None = None) -> None:
    """Write the manifest of a folder atomically.

    Args:
        folder: The folder.
        paths: Files to list; None means all files, including those in subfolders.
    """
    chosen = [path for path in folder.rglob("*") if path.is_file()] if paths is None else list(paths)
    files = {
        path.relative_to(folder).as_posix(): {"size_bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(chosen)
        if path != folder / MANIFEST_FILE
    }
    write_json(folder / MANIFEST_FILE, {"files": files})


def manifest_difference(folder: Path) -> str | None:
    """Describe the first difference between a folder and its manifest; None if there is none.

    All listed files are read in full. The folder may contain files that the manifest does not list.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return f"{MANIFEST_FILE} is missing"
    try:
        files = _read_files(folder / MANIFEST_FILE)
    except ValueError as error:
        return f"{MANIFEST_FILE} is damaged: {error}"
    for name, (size_bytes, _) in files.items():  # sizes first, because they are cheap to check
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (found := (folder / name).stat().st_size) != size_bytes:
            return f"{name} has {found:,} bytes, expected {size_bytes:,}"
    for name, (_, checksum) in files.items():
        if _sha256(folder / name) != checksum:
            return f"{name} has changed since it was written"
    return None


def _read_files(path: Path) -> dict[str, tuple[int, str]]:
    files = read_mapping(path).get("files")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"expected a mapping of files, got {files!r}")
    for name, entry in files.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{name!r} is not a path inside the folder")
        if not isinstance(entry, dict) or entry.keys() != {"size_bytes", "sha256"}:
            raise ValueError(f"expected size_bytes and sha256 of {name}, got {entry!r}")
    return {name: (entry["size_bytes"], entry["sha256"]) for name, entry in sorted(files.items())}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
