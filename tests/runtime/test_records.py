"""Records survive a kill in mid-write, refuse what is not a number, and say where they come from."""

import errno
import json
import os
import shutil
import subprocess
import threading
from importlib import metadata
from pathlib import Path

import pytest

from modeling_alibi_gpt.runtime import records as records_module
from modeling_alibi_gpt.runtime.atomic import write_json, write_text
from modeling_alibi_gpt.runtime.records import (
    append_record,
    check_record,
    provenance,
    read_checked_records,
    read_records,
    write_records,
)
from tests.support.example_records import training_record


RESULTS = Path(__file__).parents[2] / "results"


PAPER = {"kind": "published", "comparison": "a paper", "name": "caf\N{LATIN SMALL LETTER E WITH ACUTE}\nline two"}
PAPER |= {"position_method": "alibi", "protocol": "sliding", "length_tokens": 512, "train_context_length": 512}
FIRST = PAPER | {"perplexity": 20 + 0.1 + 0.2, "stride_tokens": None, "error": None, "provenance": {"source": "x"}}
SECOND = training_record("alibi")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "on the way" / "records.jsonl"


def test_what_is_appended_is_read_back(path: Path) -> None:
    append_record(path, FIRST)
    append_record(path, SECOND)
    assert read_records(path) == [FIRST, SECOND]
    assert path.read_text(encoding="utf-8").count("\n") == 2


def test_what_is_written_replaces_what_was(path: Path) -> None:
    append_record(path, FIRST)
    write_records(path, [SECOND, FIRST, SECOND])
    assert read_records(path) == [SECOND, FIRST, SECOND]


def test_a_file_of_no_records_is_empty(path: Path) -> None:
    write_records(path, [])
    assert read_records(path) == []


def test_append_after_a_kill_in_mid_write_loses_only_the_torn_record(path: Path) -> None:
    append_record(path, FIRST)
    intact = path.read_bytes()
    append_record(path, SECOND)
    torn_line = path.read_bytes()[len(intact) :]
    cuts = sorted({*range(0, len(torn_line), 97), len(torn_line) - 2, len(torn_line) - 1})
    for num_bytes in cuts:
        path.write_bytes(intact + torn_line[:num_bytes])
        # The last byte but one completes the record: only its newline is missing.
        survivors = [FIRST, SECOND] if num_bytes == len(torn_line) - 1 else [FIRST]
        assert read_records(path) == survivors
        append_record(path, FIRST)
        assert read_records(path) == [*survivors, FIRST]


def test_an_append_waits_for_that_of_another_process(path: Path) -> None:
    """Otherwise it would take the line that is being written for a torn one, and remove it."""
    fcntl = pytest.importorskip("fcntl")
    line = json.dumps(FIRST).encode() + b"\n"
    path.parent.mkdir(parents=True)
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        append = threading.Thread(target=append_record, args=(path, SECOND), daemon=True)
        other.write(line[:20])
        other.flush()
        append.start()
        append.join(timeout=0.5)
        other.write(line[20:])
    append.join(timeout=60)
    assert read_records(path) == [FIRST, SECOND]


def test_a_torn_only_line_is_no_record(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"kind": "no')
    assert read_records(path) == []
    append_record(path, FIRST)
    assert read_records(path) == [FIRST]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"kind": "no', "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b'{"value": NaN}', "not valid JSON"),
        (b"[1, 2]", "expected a JSON object"),
    ],
)
def test_a_broken_line_is_named(path: Path, line: bytes, complaint: str) -> None:
    append_record(path, FIRST)
    path.write_bytes(path.read_bytes() + line + b"\n" + path.read_bytes())
    with pytest.raises(ValueError, match=f"records.jsonl line 2 .*{complaint}"):
        read_records(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.jsonl does not exist"):
        read_records(tmp_path / "none.jsonl")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), object()])
def test_what_json_cannot_hold_is_refused_and_the_file_stays(path: Path, value: object) -> None:
    append_record(path, FIRST)
    before = path.read_bytes()
    bad = {"kind": "perplexity", "nested": [{"value": value}]}
    for write in (
        lambda: append_record(path, bad),
        lambda: write_records(path, [FIRST, bad]),
        lambda: write_json(path, bad),
    ):
        with pytest.raises(ValueError, match="a perplexity record cannot be written"):
            write()
        assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(path, FIRST)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, SECOND)
    assert json.loads(path.read_text(encoding="utf-8")) == FIRST
    assert os.listdir(path.parent) == [path.name]


def test_a_directory_in_the_way_is_an_error_that_leaves_nothing(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="is a folder; expected a file"):
        write_text(path, "text")
    assert os.listdir(path.parent) == [path.name]


def test_text_is_utf_8_and_has_the_usual_permissions(path: Path) -> None:
    write_text(path, "\N{GREEK SMALL LETTER BETA}\n")
    assert path.read_bytes() == b"\xce\xb2\n"
    plain = path.with_name("plain")
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_provenance_can_be_written_and_tells_the_versions() -> None:
    source = provenance(seed=3, data_fingerprint="abc")
    assert json.loads(json.dumps(source, allow_nan=False)) == source
    assert (source["seed"], source["data_fingerprint"]) == (3, "abc")
    assert source["versions"]["torch"] == metadata.version("torch")
    assert source["time_utc"].endswith("+00:00")
    hardware = source["hardware"]
    assert hardware["cpu"] and hardware["num_cores"] >= 1 and hardware["memory_bytes"] > 2**28


def test_a_package_that_is_not_there_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "_PACKAGES", ("torch", "no-such-package"))
    assert provenance()["versions"]["no-such-package"] is None


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_provenance_knows_the_commit_only_of_the_checkout_that_tracks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source_file = tmp_path / "records.py"
    monkeypatch.setattr(records_module, "_SOURCE_FILE", source_file)

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit_and_dirty() -> tuple[str | None, bool | None]:
        source = provenance()
        return source["git_commit"], source["git_dirty"]

    source_file.write_text("one", encoding="utf-8")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit_and_dirty() == (None, None)
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "the project around an installed copy")
    assert commit_and_dirty() == (None, None)
    git("add", "records.py")
    git("commit", "--quiet", "--message", "our own checkout")
    assert commit_and_dirty() == (git("rev-parse", "HEAD"), False)
    source_file.write_text("two", encoding="utf-8")
    assert commit_and_dirty() == (git("rev-parse", "HEAD"), True)
    monkeypatch.setenv("PATH", "")
    assert commit_and_dirty() == (None, None)


def test_a_record_of_a_known_kind_has_its_fields_and_no_others() -> None:
    whole = {"kind": "bias_matrix", "name": "a", "slopes": [1.0], "bias": [[[0.0]]], "provenance": {}}
    check_record(whole)
    with pytest.raises(ValueError, match="a record of kind bias_matrix needs provenance, slopes, bias"):
        check_record({"kind": "bias_matrix", "name": "a"})
    with pytest.raises(
        ValueError, match="'extra' is not a field of a record of kind bias_matrix; expected kind, provenance"
    ):
        check_record(whole | {"extra": 1})
    with pytest.raises(ValueError, match="kind 'biased'; expected one of training, published, milestone"):
        check_record({"kind": "biased"})
    with pytest.raises(ValueError, match="kind None"):
        check_record({})


def test_what_is_no_record_is_neither_appended_nor_written(path: Path) -> None:
    append_record(path, FIRST)
    before = path.read_bytes()
    for wrong in (FIRST | {"length_tokens": 0}, FIRST | {"color": "red"}, FIRST | {"name": 1}):
        for write in (lambda record: append_record(path, record), lambda record: write_records(path, [record])):
            with pytest.raises(ValueError, match="'(length_tokens|color|name)' "):
                write(wrong)
            assert path.read_bytes() == before


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.jsonl")), ids=lambda file: file.stem)
def test_every_result_ever_published_can_be_read(file: Path) -> None:
    if file.name.startswith(("demo_seconds", "command_costs", "kernel_times")):  # of a stop watch, not of a command
        assert {record["kind"] for record in read_records(file)} <= {"wall_clock", "command_cost", "kernel_time"}
    else:
        assert read_checked_records(file)


def test_copied_sources_say_which_commit_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIBI_GPT_COMMIT", "1" * 40)
    found = provenance()
    assert (found["git_commit"], found["git_dirty"]) == ("1" * 40, False)


def test_an_empty_commit_of_copied_sources_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after ``export ALIBI_GPT_COMMIT=$(git rev-parse HEAD)`` where there is no repository."""
    expected = provenance()
    monkeypatch.setenv("ALIBI_GPT_COMMIT", "")
    found = provenance()
    assert [found[key] for key in ("git_commit", "git_dirty")] == [expected["git_commit"], expected["git_dirty"]]
