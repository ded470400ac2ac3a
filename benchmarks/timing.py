"""Times that can be trusted on a noisy machine: candidates take turns, and what counts is the ratio within a turn."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


Candidate = Callable[[], Any]


def time_interleaved(candidates: Mapping[str, Candidate], num_rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate in each round; one round before, to warm up, is not counted."""
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
    """For each candidate, its times and how many times those of the reference they are.

    Returns:
        ``seconds`` and ``times_reference``, medians; the latter of the ratios within each round, with
        ``times_reference_quartiles``; ``reference`` and ``num_rounds``.
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
    """The most memory a call takes beyond what was there before; None where the system does not tell."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        _synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not Path("/proc/self/clear_refs").exists():
        return None
    _give_back_freed_memory()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the peak to what is held now
    before = status_bytes("VmRSS")
    run()
    return status_bytes("VmHWM") - before


def _give_back_freed_memory() -> None:
    """What earlier calls freed is still held by the C library, and would be used again without being counted."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def status_bytes(field: str, process: int | str = "self") -> int:
    """A figure of Linux's ``/proc/PID/status``; OSError where there is none."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{process}/status has no field {field}")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
