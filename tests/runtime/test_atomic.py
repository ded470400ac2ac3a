"""A folder appears whole or not at all, whatever ends the process that writes it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from modeling_alibi_gpt.runtime.atomic import appearing_whole


WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from modeling_alibi_gpt.runtime.atomic import appearing_whole

with appearing_whole(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    (folder / "nested").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write(target: Path) -> None:
    with appearing_whole(target) as folder:
        (folder / "file").write_text("whole", encoding="utf-8")


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_appears_with_what_was_written(exists: bool, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    if exists:
        target.mkdir(parents=True)
    write(target)
    assert [path.name for path in target.iterdir()] == ["file"]
    assert list(target.parent.iterdir()) == [target]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), appearing_whole(tmp_path / "deep" / "out") as folder:
        (folder / "half").write_text("half", encoding="utf-8")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_leaves_is_gone_after_the_next_run(tmp_path: Path) -> None:
    target = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL and not target.exists()
    assert (tmp_path / ".out.partial" / "half").exists()
    write(target)
    assert [path.name for path in target.iterdir()] == ["file"] and list(tmp_path.iterdir()) == [target]


def test_a_taken_folder_and_a_busy_one_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (tmp_path / ".out.partial").mkdir()
    with FileLock(tmp_path / ".out.partial" / ".lock"), pytest.raises(ValueError, match="another process is writing"):
        write(target)
    assert (tmp_path / ".out.partial").exists()
    target.write_text("a file", encoding="utf-8")
    with pytest.raises(ValueError, match="is not empty; choose another output_dir"):
        write(target)
