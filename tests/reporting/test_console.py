"""Every script ends in one JSON line, or in one line that says what was wrong."""

import errno
import json

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError

from modeling_alibi_gpt.reporting.console import USER_ERROR_EXIT_CODE, run_command


def fail_with(error: Exception) -> None:
    def command() -> dict[str, object]:
        raise error

    assert run_command(command) == USER_ERROR_EXIT_CODE


def test_the_result_is_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> dict[str, object]:
        print("for people")
        return {"perplexity": 97.3, "path": "runs/demo"}

    assert run_command(command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"perplexity": 97.3, "path": "runs/demo"}


@pytest.mark.parametrize(
    "error",
    [
        ValueError("alibi_beta must be > 0,\n  got -1"),
        FileNotFoundError(errno.ENOENT, "No such file", "a.yaml"),
        StrictDataclassFieldValidationError("alibi_beta", ValueError("must be > 0, got -1")),
    ],
)
def test_what_users_cause_is_one_line_and_exit_code_2(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(error)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert str(error).split()[-1] in printed.err


def test_a_full_disk_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(OSError(errno.ENOSPC, "No space left on device"))
    assert "free some space" in capsys.readouterr().err


def test_an_error_without_words_has_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(ValueError())
    assert capsys.readouterr().err == "error: ValueError\n"


def test_an_interrupt_is_one_word(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> dict[str, object]:
        raise KeyboardInterrupt

    assert run_command(command) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        fail_with(KeyError("missing"))


def test_only_the_process_of_rank_0_prints_the_result(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run_command(lambda: {"perplexity": 97.3}) == 0
    assert capsys.readouterr().out == ""
