"""``scripts/train.py`` as users run it, in processes that can be killed before they write any given file.

The processes are forked from one that has imported everything, so that they start quickly.
"""

import gc
import importlib.util
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import datasets
import torch


SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
WRITING_OPERATIONS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["modeling_alibi_gpt.training.trainer"])


def start_training(
    experiment_file: Path,
    *settings: str,
    killed_at: str | int | None = None,
    environment: dict[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> BaseProcess:
    """Start ``python scripts/train.py --config experiment_file --set ...``; its output goes to ``<pid>.log``.

    Args:
        experiment_file: The experiment; its run folder is ``run`` in the same folder.
        settings: Arguments of ``--set``.
        killed_at: The write operation in the run folder before which the process kills itself: a pattern, such as
            ``open checkpoint-4/config.json``, or a number from 1.
        environment: Variables that a launcher would export.
        prepare: Called in the process before the script; must be a function of a module.
    """
    arguments = ["--config", str(experiment_file), *(part for setting in settings for part in ("--set", setting))]
    process = _CONTEXT.Process(
        target=_run_script,
        args=(
            arguments,
            experiment_file.parent,
            datasets.config.HF_DATASETS_CACHE,
            killed_at,
            environment or {},
            prepare,
        ),
    )
    process.start()
    return process


def exit_code(process: BaseProcess, timeout_seconds: float = 180) -> int:
    """Wait for the end of a process; negative if a signal ended it."""
    process.join(timeout_seconds)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"no end after {timeout_seconds} s")
    return process.exitcode


def _run_script(
    arguments: Sequence[str],
    folder: Path,
    cache: str,
    killed_at: str | int | None,
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    gc.freeze()  # garbage collection over all imported objects would take longer than a run
    os.environ.update(environment)
    datasets.config.HF_DATASETS_CACHE = cache
    torch.set_num_threads(1)
    with open(folder / f"{os.getpid()}.log", "w", encoding="utf-8", buffering=1) as log:
        sys.stdout = sys.stderr = log
        if killed_at is not None:
            sys.addaudithook(_killer(f"{folder / 'run'}{os.sep}", killed_at))
        code = 1
        try:
            if prepare is not None:
                prepare()
            code = load_script().main(arguments)
        except Exception:
            traceback.print_exc()
        finally:
            # Skip the normal interpreter exit, which waits for threads that a fork does not have.
            os._exit(code)


def load_script() -> Any:
    """``scripts/train.py`` as a module."""
    spec = importlib.util.spec_from_file_location("train_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def _killer(prefix: str, killed_at: str | int) -> Callable[[str, tuple[Any, ...]], None]:
    num_operations = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal num_operations
        if event not in WRITING_OPERATIONS or not str(arguments[0]).startswith(prefix):
            return
        if event == "open" and arguments[1] in ("r", "rb"):
            return
        num_operations += 1
        operation = f"{event} {str(arguments[0]).removeprefix(prefix)}"
        if num_operations == killed_at or fnmatch(operation, str(killed_at)):
            os.kill(os.getpid(), signal.SIGKILL)

    return hook
