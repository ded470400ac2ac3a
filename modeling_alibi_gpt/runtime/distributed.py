"""Processes that share work: their ranks, and how an error in one ends all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env


# What launchers export to each of several processes, as accelerate reads it.
WORLD_SIZE_NAMES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def process_state() -> PartialState:
    """The state of ``accelerate``, which on a machine without accelerator must be told so before its first use.

    Otherwise processes started together would each take itself for the only one.

    Raises:
        ValueError: Several processes were asked for and one was started.
    """
    if _is_lone_launch():
        raise ValueError(
            "accelerate launch was asked for several processes and started one: give it --multi_gpu and no --cpu "
            "(right without GPU too), or use torchrun --nproc_per_node"
        )
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def raise_on_all_ranks(failure: Exception | None) -> None:
    """Raise a ValueError in every process when one has failed: the others would wait for it forever."""
    messages = _gather_failures(failure)
    if messages:
        raise ValueError(messages[0]) from failure


@contextmanager
def sync_errors() -> Iterator[None]:
    """Wait at the end of a block for all processes; what a user caused in one of them is raised in each.

    Raises:
        ValueError: Another process failed; with what it said.
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
    """What tqdm takes as ``disable``: True in all processes but one; None there, which is silent off a terminal."""
    return None if process_state().is_main_process else True


def _is_lone_launch() -> bool:
    """Whether ``accelerate launch`` was asked for several processes and started one.

    It does so, without a word, where it finds no several accelerators; all it leaves is the address to meet at.
    """
    is_asked_for_several = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    return is_asked_for_several and not any(name in os.environ for name in WORLD_SIZE_NAMES)


def _gather_failures(failure: Exception | None) -> list[str]:
    message = failure and (" ".join(str(failure).split()) or type(failure).__name__)
    return [message for message in gather_object([message]) if message is not None]
