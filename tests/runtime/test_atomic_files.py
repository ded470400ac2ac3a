"""A report on a full disk: page and figures together, or what was there before."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeling_alibi_gpt.report.report import build_report
from modeling_alibi_gpt.runtime.atomic import write_together
from modeling_alibi_gpt.runtime.records import write_records
from tests.bad_input.refusals import script
from tests.support.comparison_cases import methods
from tests.support.full_disk import SmallDisk


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
    with pytest.raises(IsADirectoryError, match="is a folder; expected a file there"):
        write_together({tmp_path / "new" / "a": b"1", tmp_path / "b": b"2"})
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_pages_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: renamed.append(Path(new).suffix) or replace(old, new))
    build_report(methods(), tmp_path, title="Order")
    assert renamed == [".png"] * (len(renamed) - 2) + [".md", ".html"]
