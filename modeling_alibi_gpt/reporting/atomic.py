"""Files that are replaced as a whole, alone or with those that belong to them: readers never see a part."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: str | Path, obj: Any) -> None:
    """Replace a JSON file as a whole, indented for people. Raises ``ValueError`` on NaN or infinity."""
    write_text(path, to_json(obj, indent=2) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Replace a UTF-8 text file as a whole."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace a file as a whole: write beside it, then rename. A failure leaves the old file and nothing else."""
    write_together({Path(path): data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write every file beside its place, wait until all are on the disk, then rename them in the order given.

    What can fail for want of room fails before the first of them is renamed, and then leaves nothing behind: neither
    a part of a file nor a folder that was not there. Put last what links to the others.

    Raises:
        OSError: The disk is full, a folder cannot be written, or a folder lies where a file is to go.
    """
    made: list[Path] = []
    staged: list[tuple[Path, Path]] = []
    try:
        for path, data in files.items():
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder; expected a file there, or nothing")
            made += _make_folder(path.parent)
            beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            staged.append((beside, path))
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for beside, path in staged:
            os.replace(beside, path)
    except BaseException:
        for beside, _ in staged:
            beside.unlink(missing_ok=True)
        for folder in reversed(made):
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


def to_json(obj: Any, indent: int | None = None) -> str:
    """JSON of finite numbers alone. Raises ``ValueError``, which names the kind of a record, on anything else."""
    try:
        return json.dumps(obj, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        what = f"a {obj['kind']} record" if isinstance(obj, dict) and "kind" in obj else "a record"
        raise ValueError(f"{what} cannot be written ({error}); write null where a number is not finite") from error


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it; the ones that were not there, outermost first."""
    missing = [each for each in (*reversed(folder.parents), folder) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing
