"""Robust timing on a noisy machine: candidates alternate, and ratios are computed within each round."""

import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


Candidate = Callable[[], Any]
_SAMPLE_SECONDS = 0.05


def time_interleaved(candidates: Mapping[str, Candidate], num_rounds: int) -> dict[str, list[float]]:
    """Time each candidate in each round, in seconds, after one uncounted warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(num_rounds + 1):
        for name, run in candidates.items():
            _synchronize()
            start = time.perf_counter()
            run()
            _synchronize()
            if round_number > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summarize(seconds: Mapping[str, list[float]], reference: str) -> dict[str, dict[str, Any]]:
    """Summarize the times of each candidate and their ratios to the reference.

    Returns:
        By candidate: ``seconds``, the median time; ``times_reference`` and ``times_reference_quartiles``, median and
        quartiles of the ratios within each round; ``reference`` and ``num_rounds``.
    """
    summary = {}
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, seconds[reference], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        summary[name] = {
            "seconds": statistics.median(values),
            "reference": reference,
            "times_reference": statistics.median(ratios),
            "times_reference_quartiles": [quartiles[0], quartiles[2]],
            "num_rounds": len(values),
        }
    return summary


def extra_bytes(run: Candidate) -> int | None:
    """Peak memory of a call in bytes beyond what was in use before; None if the system does not report it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        _synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not Path("/proc/self/clear_refs").exists():
        return None
    _give_back_freed_memory()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak to the current usage
    before = status_bytes("VmRSS")
    run()
    return status_bytes("VmHWM") - before


def _give_back_freed_memory() -> None:
    """Return freed memory to the system. The C library would otherwise reuse it without it being counted."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def status_bytes(field: str, process: int | str = "self") -> int:
    """Read a field in kB of Linux's ``/proc/PID/status`` as bytes; raises OSError if there is none."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{process}/status has no field {field}")


class PeakAnonymousMemory(threading.Thread):
    """Samples the anonymous memory of this process, which leaves out pages of memory-mapped files. A context manager.

    Attributes:
        peak_bytes: Largest sample.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._stop_event = threading.Event()

    def run(self) -> None:
        while not self._stop_event.wait(_SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, status_bytes("RssAnon"))

    def __enter__(self) -> "PeakAnonymousMemory":
        self.peak_bytes = status_bytes("RssAnon")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_event.set()
        self.join()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
