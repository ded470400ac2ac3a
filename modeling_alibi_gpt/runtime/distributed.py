"""Distributed processes: their state, and propagation of an error in one to all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env


# Environment variables that launchers set for several processes, as accelerate reads them.
WORLD_SIZE_NAMES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def process_state() -> PartialState:
    """Return the state of ``accelerate``, set to the CPU on a machine without an accelerator.

    Without that setting, processes started together would each assume to be the only one.

    Raises:
        ValueError: Several processes were requested but only one was started.
    """
    if _is_lone_launch():
        raise ValueError(
            "accelerate launch was asked for several processes but started one: pass --multi_gpu without --cpu "
            "(also on machines without a GPU), or use torchrun --nproc_per_node"
        )
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def raise_on_all_ranks(failure: Exception | None) -> None:
    """Raise ValueError in every process if one has failed, so that the others do not wait forever."""
    messages = _gather_failures(failure)
    if messages:
        raise ValueError(messages[0]) from failure


@contextmanager
def sync_errors() -> Iterator[None]:
    """Wait for all processes at the end of a block, and raise a user error of one process in each.

    Raises:
        ValueError: Another process failed; the message is that of its error.
    """
    failure = None
    try:
        yield
    except (ValueError, OSError) as error:
        failure = error
    messages = _gather_failures(failure)
    if failure is not None:
        raise failure
    if messages:
        raise ValueError(messages[0])


def hides_progress() -> bool | None:
    """Value for tqdm's ``disable``: None in the main process (disabled unless on a terminal), True in the others."""
    return None if process_state().is_main_process else True


def _is_lone_launch() -> bool:
    """Whether ``accelerate launch`` was asked for several processes but started one.

    It does so silently if it does not find several accelerators. The only trace is the rendezvous address.
    """
    is_asked_for_several = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    return is_asked_for_several and not any(name in os.environ for name in WORLD_SIZE_NAMES)


def _gather_failures(failure: Exception | None) -> list[str]:
    message = failure and (" ".join(str(failure).split()) or type(failure).__name__)
    return [message for message in gather_object([message]) if message is not None]
