"""The processes that share a measurement: who they are, and how they fail together."""

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env


def process_state() -> PartialState:
    """The state of ``accelerate``, which on a machine without accelerator must be told so before its first use.

    Otherwise processes started together would each take itself for the only one.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def fail_together(failure: Exception | None) -> None:
    """Raise a ValueError in every process when one has failed: the others would wait for it forever."""
    message = failure and (" ".join(str(failure).split()) or type(failure).__name__)
    messages = [message for message in gather_object([message]) if message is not None]
    if messages:
        raise ValueError(messages[0]) from failure


def hides_progress() -> bool | None:
    """What tqdm takes as ``disable``: True in all processes but one; None there, which is silent off a terminal."""
    return None if process_state().is_main_process else True
