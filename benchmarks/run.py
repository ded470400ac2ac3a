"""What ``scripts/benchmark.py`` runs: the cases of a configuration, and a record of each contestant."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.attention import AttentionCase, time_attention
from benchmarks.converted import ConvertedCase, time_converted
from benchmarks.models import DecodeCase, ModelCase, time_decoding, time_models
from modeling_alibi_gpt.runtime.config import build_config
from modeling_alibi_gpt.runtime.records import Record, append_record, check_record, provenance, write_records


# Fields of ``BenchmarkConfig``: what their cases are, and what times one.
KINDS: dict[str, tuple[type[Any], Callable[..., Iterator[Record]]]] = {
    "attention": (AttentionCase, time_attention),
    "models": (ModelCase, time_models),
    "decoding": (DecodeCase, time_decoding),
    "converted": (ConvertedCase, time_converted),
}
_TESTS = Path(__file__).resolve().parents[1] / "tests" / "test_attention.py"


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """The cases, and where their records go.

    Attributes:
        output: JSON Lines file, written anew.
        attention: Cases of attention alone: fields of ``AttentionCase``.
        models: Cases of whole models: fields of ``ModelCase``.
        decoding: Cases of single tokens after a long text: fields of ``DecodeCase``.
        converted: Cases of other families' models beside what they convert to: fields of ``ConvertedCase``.
        num_threads: Threads of torch on a CPU; null leaves torch its choice.
        seed: Of weights, tokens, queries, keys and values.
    """

    output: str
    attention: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    decoding: list[dict[str, Any]] = field(default_factory=list)
    converted: list[dict[str, Any]] = field(default_factory=list)
    num_threads: int | None = None
    seed: int = 0


def run_benchmark(config: BenchmarkConfig) -> Iterator[Record]:
    """Time all cases, give each record as it comes and add it to ``config.output``.

    Raises:
        ValueError: A case cannot be, or the tests of attention fail: wrong results are not timed.
    """
    timed = [
        (run, build_config(case_class, case, f"{name}[{i}]."))
        for name, (case_class, run) in KINDS.items()
        for i, case in enumerate(getattr(config, name))
    ]
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
