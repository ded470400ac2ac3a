"""Decides whether Python code in a checkpoint may run: never, unless the user allows it on the command line.

A settings file cannot allow it, because it may come from the same source as the checkpoint.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


FLAG = "--trust-remote-code"
# This phrase is in every refusal of transformers to run code, of a config, a model or a tokenizer.
_ASKED_FOR = "trust_remote_code=True"
_is_trusted: ContextVar[bool] = ContextVar("trust_remote_code", default=False)


@contextmanager
def trusting_remote_code(is_trusted: bool) -> Iterator[None]:
    """Allow or forbid checkpoints loaded in this context to run their own code."""
    token = _is_trusted.set(is_trusted)
    try:
        yield
    finally:
        _is_trusted.reset(token)


def is_remote_code_trusted() -> bool:
    """Value of ``trust_remote_code`` for every load: False outside ``trusting_remote_code(True)``."""
    return _is_trusted.get()


def refuse_hub_kernel(attn_implementation: str | None) -> None:
    """Raise ValueError for an attention back end OWNER/NAME, which transformers would download and run."""
    if attn_implementation is not None and "/" in attn_implementation:
        raise ValueError(
            f"attn_implementation {attn_implementation!r} names code on the Hub, which settings must not run; "
            "expected an installed back end, such as sdpa or eager"
        )


def load_failure(error: Exception) -> str:
    """Describe why a load failed: the message of ``error``, or the flag to pass if code was refused."""
    if _ASKED_FOR not in str(error):
        return str(error)
    return (
        "it contains Python code, which is not run by default; read that code, and if you trust it, add "
        f"{FLAG} to train, evaluate, extrapolate, context, recall, generate, margins or explore"
    )
