"""Whether Python files in a checkpoint may run: never, unless the user allows it on the command line. A settings file
cannot allow it, because it may come from the same source as the checkpoint.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


FLAG = "--trust-remote-code"
# What transformers says in every refusal to run code, whether of a config, a model or a tokenizer.
_ASKED_FOR = "trust_remote_code=True"
_is_trusted: ContextVar[bool] = ContextVar("trust_remote_code", default=False)


@contextmanager
def trusting_remote_code(is_trusted: bool) -> Iterator[None]:
    """Let the checkpoints that are loaded within run their own code, or not."""
    token = _is_trusted.set(is_trusted)
    try:
        yield
    finally:
        _is_trusted.reset(token)


def is_remote_code_trusted() -> bool:
    """What every load passes on as ``trust_remote_code``: False unless within ``trusting_remote_code(True)``."""
    return _is_trusted.get()


def refuse_hub_kernel(attn_implementation: str | None) -> None:
    """Raise a ValueError for an attention of the form OWNER/NAME, which transformers downloads and runs."""
    if attn_implementation is not None and "/" in attn_implementation:
        raise ValueError(
            f"attn_implementation {attn_implementation!r} names code on the Hub, which no settings can run; "
            "expected a back end that is installed, such as sdpa or eager"
        )


def load_failure(error: Exception) -> str:
    """Why a load failed: the words of ``error``, or the flag where transformers refused to run code."""
    if _ASKED_FOR not in str(error):
        return str(error)
    return (
        "it needs Python code of its own, which is not run; read that code, and if you trust it, add "
        f"{FLAG} to train, evaluate, extrapolate or generate"
    )
