"""What ``scripts/benchmark.py`` runs: the cases of a configuration, and a record of each contestant."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import field
from pathlib import Path

import torch

from benchmarks.attention import AttentionCase, time_attention
from benchmarks.converted import ConvertedCase, time_converted
from benchmarks.loops import LoopCase, time_loops
from benchmarks.models import DecodeCase, ModelCase, time_decoding, time_models
from modeling_alibi_gpt.runtime.config import config_dataclass
from modeling_alibi_gpt.runtime.records import Record, append_record, check_record, provenance, write_records


# Fields of ``BenchmarkConfig``, and what times one of their cases.
KINDS: dict[str, Callable[..., Iterator[Record]]] = {
    "attention": time_attention,
    "models": time_models,
    "decoding": time_decoding,
    "converted": time_converted,
    "loops": time_loops,
}
_TESTS = Path(__file__).resolve().parents[1] / "tests" / "test_attention.py"


@config_dataclass
class BenchmarkConfig:
    """The cases, and where their records go."""

    output: str
    """JSON Lines file, written anew."""
    attention: list[AttentionCase] = field(default_factory=list)
    """Cases of attention alone."""
    models: list[ModelCase] = field(default_factory=list)
    """Cases of whole models."""
    decoding: list[DecodeCase] = field(default_factory=list)
    """Cases of single tokens after a long text."""
    converted: list[ConvertedCase] = field(default_factory=list)
    """Cases of other families' models beside what they convert to."""
    loops: list[LoopCase] = field(default_factory=list)
    """Cases of trainings beside a plain loop."""
    num_threads: int | None = None
    """Threads of torch on a CPU; null leaves torch its choice."""
    seed: int = 0
    """Of weights, tokens, queries, keys and values."""


def run_benchmark(config: BenchmarkConfig) -> Iterator[Record]:
    """Time all cases, give each record as it comes and add it to ``config.output``.

    Raises:
        ValueError: A case cannot be, or the tests of attention fail: wrong results are not timed.
    """
    timed = [(run, case) for name, run in KINDS.items() for case in getattr(config, name)]
    check_attention()
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    write_records(config.output, [])
    for run, case in timed:
        for figures in run(case, device, config.seed):
            record = {
                **figures,
                "num_threads": torch.get_num_threads(),
                "provenance": provenance(seed=config.seed),
            }
            check_record(record)
            append_record(config.output, record)
            yield record


def check_attention() -> None:
    """Run the tests of attention.

    Raises:
        ValueError: A test fails, or the tests are not there.
    """
    if not _TESTS.is_file() or importlib.util.find_spec("pytest") is None:
        raise ValueError("wrong results are not timed: benchmarks need the tests of a checkout, and pytest")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(_TESTS)]
    done = subprocess.run(command, cwd=_TESTS.parents[1], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        raise ValueError(
            f"wrong results are not timed: {'; '.join(failed) or done.stdout[-500:] + done.stderr[-500:]}"
        )
