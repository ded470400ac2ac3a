"""Files that belong together, such as a page and its figures: all of them are replaced, or none."""

import os
from collections.abc import Mapping
from pathlib import Path


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


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it; the ones that were not there, outermost first."""
    missing = [each for each in (*reversed(folder.parents), folder) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing
