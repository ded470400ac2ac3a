"""Every command ends in its result, or in one line that says what was wrong."""

import errno
import json

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError

from alibi_gpt_cli.console import USER_ERROR_EXIT_CODE, exit_code, print_result


def fail_with(error: BaseException) -> int:
    def command() -> None:
        raise error

    return exit_code(command)


def test_the_result_is_the_last_line_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"perplexity": 97.3, "path": "runs/demo"}
    print("for people")
    print_result(result, as_json=True)
    first, last = capsys.readouterr().out.splitlines()
    assert (first, json.loads(last)) == ("for people", result)
    print_result(result, as_json=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("alibi_beta must be > 0,\n  got -1"),
        FileNotFoundError(errno.ENOENT, "No such file", "a.yaml"),
        StrictDataclassFieldValidationError("alibi_beta", ValueError("must be > 0, got -1")),
    ],
)
def test_what_users_cause_is_one_line_and_exit_code_2(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert fail_with(error) == USER_ERROR_EXIT_CODE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert str(error).split()[-1] in printed.err


def test_a_full_disk_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail_with(OSError(errno.ENOSPC, "No space left on device")) == USER_ERROR_EXIT_CODE
    assert "free some space" in capsys.readouterr().err


def test_an_error_without_words_has_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail_with(ValueError()) == USER_ERROR_EXIT_CODE
    assert capsys.readouterr().err == "error: ValueError\n"


def test_an_interrupt_is_one_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail_with(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(("module", "extra"), [("datasets.config", "train"), ("optuna", "sweep"), ("gguf", "convert")])
def test_a_missing_package_is_one_line_that_says_what_to_install(
    module: str, extra: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert fail_with(error) == USER_ERROR_EXIT_CODE
    assert capsys.readouterr().err == f"error: this needs {module}: pip install 'alibi-gpt[{extra}]'\n"


def test_a_missing_module_of_our_own_is_a_defect() -> None:
    with pytest.raises(ModuleNotFoundError):
        fail_with(ModuleNotFoundError("No module named 'modeling_alibi_gpt.lost'", name="modeling_alibi_gpt.lost"))


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        fail_with(KeyError("missing"))


def test_only_the_process_of_rank_0_prints_the_result(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    print_result({"perplexity": 97.3}, as_json=True)
    assert capsys.readouterr().out == ""
