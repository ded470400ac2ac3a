"""Which tokens of a stream are scored in which window: the two protocols of token-exact perplexity."""

from dataclasses import dataclass


PROTOCOLS = ("nonoverlapping", "sliding")


@dataclass(frozen=True, kw_only=True)
class Window:
    """The model reads tokens ``start .. stop-1`` of the stream; only its last ``num_scored`` predictions count.

    Prediction ``i`` is that of token ``i + 1`` by a model that has read token ``i`` last.
    """

    start: int
    stop: int
    num_scored: int

    @property
    def num_inputs(self) -> int:
        """Tokens that the model reads."""
        return self.stop - self.start

    @property
    def first_scored(self) -> int:
        """Position within the window of the first prediction that counts."""
        return self.num_inputs - self.num_scored

    @property
    def scored(self) -> slice:
        """The predictions of the stream that count in this window."""
        return slice(self.stop - self.num_scored, self.stop)


def resolve_stride(length_tokens: int, protocol: str, stride_tokens: int | None = None) -> int | None:
    """The stride that a protocol uses at a length: None when windows do not overlap, by default ``length // 4``.

    A quarter gives every token but the first ones a context of at least three quarters of the length, at four times
    the cost of windows that do not overlap, whatever the length.

    Raises:
        ValueError: The protocol is unknown, or length or stride are out of range.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if length_tokens < 1:
        raise ValueError(f"length_tokens must be at least 1, got {length_tokens}")
    if protocol == "nonoverlapping":
        if stride_tokens is not None:
            raise ValueError(f"stride_tokens={stride_tokens} needs protocol=sliding, got protocol=nonoverlapping")
        return None
    if stride_tokens is None:
        return max(1, length_tokens // 4)
    if not 1 <= stride_tokens <= length_tokens:
        raise ValueError(f"stride_tokens must lie in 1..{length_tokens} (the window length), got {stride_tokens}")
    return stride_tokens


def plan_windows(
    num_tokens: int, *, length_tokens: int, protocol: str, stride_tokens: int | None = None
) -> list[Window]:
    """Windows that predict every token of a stream but the first exactly once, in order.

    ``nonoverlapping``: window k reads tokens ``kL .. kL+L-1`` and all its predictions count; the last may be shorter.
    ``sliding`` with stride S: the first window counts whole; each next one ends S tokens further, reads L tokens and
    counts its last S predictions; the last one counts what remains.

    Raises:
        ValueError: The stream has nothing to predict, or the protocol, length or stride is impossible.
    """
    stride_tokens = resolve_stride(length_tokens, protocol, stride_tokens)
    num_predictions = num_tokens - 1
    if num_predictions < 1:
        raise ValueError(f"perplexity needs a stream of at least 2 tokens, got {num_tokens}")
    stop = min(length_tokens, num_predictions)
    windows = [Window(start=0, stop=stop, num_scored=stop)]
    while stop < num_predictions:
        num_scored = min(stride_tokens or length_tokens, num_predictions - stop)
        stop += num_scored
        start = stop - (length_tokens if stride_tokens else num_scored)
        windows.append(Window(start=start, stop=stop, num_scored=num_scored))
    return windows
