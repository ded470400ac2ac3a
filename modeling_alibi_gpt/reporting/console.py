"""How every script runs: its result is one JSON object as the last line, a user's mistake one line and exit code 2."""

import errno
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from modeling_alibi_gpt.reporting.launching import start_missing_processes


USER_ERROR_EXIT_CODE = 2
MAX_ERROR_CHARACTERS = 1000  # of what a message quotes, a file may hold any amount
INTERRUPTED_EXIT_CODE = 130  # by the custom of shells


def run_command(command: Callable[[], dict[str, Any]]) -> int:
    """Run ``command``, print its result as the last line of standard output, and return the exit code.

    ``ValueError``, ``OSError`` and the errors of a config's own checks are what users cause (a misspelt key, a missing
    file, a full disk): they become one line on standard error and exit code 2. Anything else is a defect of ours and
    keeps its traceback. Ctrl-C ends with one word and exit code 130.

    Under a launcher only the process with rank 0 prints the result.
    """
    start_missing_processes()

    def print_result() -> None:
        result = command()
        if os.environ.get("RANK", "0") == "0":
            sys.stdout.flush()
            print(json.dumps(result, allow_nan=False), flush=True)

    return exit_code(print_result)


def exit_code(call: Callable[[], Any]) -> int:
    """Call, and return 0, or the exit code of a user's mistake or of Ctrl-C, whose line is printed."""
    try:
        call()
    except (ValueError, OSError, StrictDataclassError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    return 0


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full: free some space and run the same command again"
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= MAX_ERROR_CHARACTERS else f"{words[:MAX_ERROR_CHARACTERS]}..."
