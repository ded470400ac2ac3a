"""A real full disk, for environments that allow mounting a file system."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """An in-memory file system with adjustable free space."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder = folder
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)], check=True, capture_output=True
        )

    def leave_free(self, free_bytes: int) -> None:
        status = os.statvfs(self.folder)
        ballast = max(0, status.f_bavail * status.f_frsize - free_bytes)
        (self.folder / "ballast").write_bytes(bytes(ballast))

    def make_room(self) -> None:
        (self.folder / "ballast").unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        disk = SmallDisk(folder, 4 * 2**20)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount a file system: {error}")
    yield disk
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
