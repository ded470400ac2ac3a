"""Files and folders appear whole or not at all, whatever ends the process that writes them or fills the disk."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from modeling_alibi_gpt.report.report import build_report
from modeling_alibi_gpt.runtime.atomic import atomic_directory, atomic_file, write_together
from modeling_alibi_gpt.runtime.records import write_records
from tests.bad_input.refusals import script
from tests.support.comparison_cases import methods
from tests.support.full_disk import SmallDisk


WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from modeling_alibi_gpt.runtime.atomic import atomic_directory

with atomic_directory(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    (folder / "nested").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write(target: Path) -> None:
    with atomic_directory(target) as folder:
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
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "deep" / "out") as folder:
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


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), atomic_directory(target, replaces=True) as folder:
        (folder / "half").write_text("half", encoding="utf-8")
        raise RuntimeError
    assert tree(tmp_path) == {"out/old": b"old"}
    with atomic_directory(target, replaces=True) as folder:
        (folder / "new").write_text("new", encoding="utf-8")
    assert tree(tmp_path) == {"out/new": b"new"}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    with atomic_file(target) as path:
        path.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), atomic_file(target) as path:
        path.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert tree(tmp_path) == {"deep/file": b"old"}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], list[Any]]:
    """Let the n-th call of a function of ``os`` find the disk full."""

    def arrange(name: str, number: int) -> list[Any]:
        original, calls = getattr(os, name), []

        def call(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments)

        monkeypatch.setattr(os, name, call)
        return calls

    return arrange


@pytest.mark.parametrize("before", [False, True])
def test_at_whichever_file_the_disk_is_full_nothing_has_changed(
    before: bool, tmp_path: Path, fail_at: Callable[[str, int], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    output_dir = tmp_path / "deep" / "report"
    if before:
        build_report(methods(), output_dir, title="Before")
    old = tree(tmp_path)
    num_files = 0
    while True:
        calls = fail_at("fsync", num_files + 1)
        try:
            paths = build_report(methods(), output_dir, title="After")
        except OSError as error:
            assert error.errno == errno.ENOSPC
            assert tree(tmp_path) == old and (before or not any(tmp_path.iterdir()))
            num_files += 1
            monkeypatch.undo()
            continue
        break
    assert num_files == len(calls) == len(paths["figures"]) + 2 > 3
    assert b"After" in tree(tmp_path)["deep/report/report.html"]


def test_the_command_says_so_in_one_line(
    small_disk: SmallDisk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(tmp_path / "records.jsonl", methods())
    whole = build_report(methods(), tmp_path / "whole", title="Whole")
    num_bytes = sum(len(data) for data in tree(tmp_path / "whole").values())
    command = ["--records", str(tmp_path / "records.jsonl"), "--output-dir", str(small_disk.folder / "report")]
    for share in (0.0, 0.3, 0.6, 0.9):
        small_disk.leave_free(int(share * num_bytes))
        assert script("report").main(command) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line == "error: the disk is full: free some space and run the same command again"
        assert os.listdir(small_disk.folder) == ["ballast"]
        small_disk.make_room()
    assert script("report").main(command) == 0
    assert len(tree(small_disk.folder / "report")) == len(whole["figures"]) + 2


def test_a_folder_in_the_place_of_a_file_is_named_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder; expected a file"):
        write_together({tmp_path / "new" / "a": [b"1"], tmp_path / "b": [b"2"]})
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_pages_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: renamed.append(Path(new).suffix) or replace(old, new))
    build_report(methods(), tmp_path, title="Order")
    assert renamed == [".png"] * (len(renamed) - 2) + [".md", ".html"]
