"""The two protocols of token-exact perplexity: which window scores which tokens of a stream."""

from dataclasses import dataclass


PROTOCOLS = ("nonoverlapping", "sliding")


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window over tokens ``start .. stop-1`` of the stream, of which the last ``num_scored`` predictions count.

    Prediction ``i`` is that of token ``i + 1`` after the model has read token ``i``.
    """

    start: int
    stop: int
    num_scored: int

    @property
    def num_inputs(self) -> int:
        """Number of tokens that the model reads."""
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
    """Return the stride of a protocol at a length: None for ``nonoverlapping``, ``length // 4`` by default.

    With a quarter, every token after the first window has a context of at least three quarters of the length, at four
    times the cost of nonoverlapping windows.

    Raises:
        ValueError: The protocol is unknown, or the length or stride is out of range.
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
        raise ValueError(f"stride_tokens must be in 1..{length_tokens} (the window length), got {stride_tokens}")
    return stride_tokens


def plan_windows(
    num_tokens: int, *, length_tokens: int, protocol: str, stride_tokens: int | None = None
) -> list[Window]:
    """Plan windows that predict every token of a stream except the first exactly once, in order.

    ``nonoverlapping``: window k reads tokens ``kL .. kL+L-1`` and all its predictions count; the last may be shorter.
    ``sliding`` with stride S: all predictions of the first window count. Each further window reads L tokens, ends S
    tokens later and counts its last S predictions. The last window counts the remainder.

    Raises:
        ValueError: The stream has nothing to predict, or the protocol, length or stride is invalid.
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
