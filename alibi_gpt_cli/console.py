"""Terminal output of every command: its result, and a user's mistake as one line with exit code 2."""

import errno
import functools
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import typer
from huggingface_hub.errors import StrictDataclassError


USER_ERROR_EXIT_CODE = 2
MAX_ERROR_CHARACTERS = 1000  # a message may quote a file of any size
INTERRUPTED_EXIT_CODE = 130  # as shells do
# The extra to name for a missing module: of several extras that install it, the one whose commands import it first.
EXTRA_OF_MODULE = {
    "accelerate": "train",
    "datasets": "train",
    "evaluate": "train",
    "tensorboard": "train",
    "optuna": "sweep",
    "sqlalchemy": "sweep",
    "jinja2": "report",
    "matplotlib": "report",
    "pandas": "report",
    "gguf": "convert",
    "gradio": "explore",
}


def exit_code(call: Callable[[], Any]) -> int:
    """Call, and return 0, or print one line and return the exit code of a user's mistake or of Ctrl-C.

    Users cause ``ValueError``, ``OSError`` and the errors of a config's own checks (a misspelt key, a missing file, a
    full disk). These become one line on standard error and exit code 2. So does a missing package, with the extra that
    installs it. Any other error is a defect of this package and keeps its traceback. Ctrl-C prints one word and gives
    exit code 130.
    """
    try:
        call()
    except (ValueError, OSError, StrictDataclassError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    except ModuleNotFoundError as error:
        extra = EXTRA_OF_MODULE.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(f"error: this needs {error.name}: pip install 'alibi-gpt[{extra}]'", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    return 0


def ends_in_one_line(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command in ``exit_code``; its name, help and options stay."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        code = exit_code(functools.partial(command, *args, **options))
        if code:
            raise typer.Exit(code)

    return run


def print_result(result: dict[str, Any], as_json: bool) -> None:
    """With ``--json``, print a command's result as the last line, for programs.

    Under a launcher only the process with rank 0 prints.
    """
    if as_json and os.environ.get("RANK", "0") == "0":
        sys.stdout.flush()
        print(json.dumps(result, allow_nan=False), flush=True)


def show_progress() -> None:
    """Print progress messages of the package to standard error."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("modeling_alibi_gpt").setLevel(logging.INFO)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full: free some space and run the same command again"
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= MAX_ERROR_CHARACTERS else f"{words[:MAX_ERROR_CHARACTERS]}..."
