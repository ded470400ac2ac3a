"""Runs the cases of ``alibi-gpt benchmark`` and records each candidate."""

from collections.abc import Callable, Iterator
from dataclasses import field

import torch

from benchmarks.attention import AttentionCase, time_attention
from benchmarks.converted import ConvertedCase, time_converted
from benchmarks.loops import LoopCase, time_loops
from benchmarks.models import DecodeCase, ModelCase, time_decoding, time_models
from modeling_alibi_gpt.runtime.config import config_dataclass
from modeling_alibi_gpt.runtime.records import Record, append_record, provenance, write_records


# Fields of ``BenchmarkConfig``, and the function that times one of their cases.
KINDS: dict[str, Callable[..., Iterator[Record]]] = {
    "attention": time_attention,
    "models": time_models,
    "decoding": time_decoding,
    "converted": time_converted,
    "loops": time_loops,
}


@config_dataclass
class BenchmarkConfig:
    """The cases to time and the file for the records."""

    output: str
    """JSON Lines file; an existing one is replaced."""
    attention: list[AttentionCase] = field(default_factory=list)
    """Cases of attention alone."""
    models: list[ModelCase] = field(default_factory=list)
    """Cases of whole models."""
    decoding: list[DecodeCase] = field(default_factory=list)
    """Cases of single tokens after a long text."""
    converted: list[ConvertedCase] = field(default_factory=list)
    """Cases of models of other families against their conversions."""
    loops: list[LoopCase] = field(default_factory=list)
    """Cases of training against a plain loop."""
    num_threads: int | None = None
    """Number of torch threads on a CPU; null leaves the choice to torch."""
    seed: int = 0
    """Seed of weights, tokens, queries, keys and values."""


def run_benchmark(config: BenchmarkConfig) -> Iterator[Record]:
    """Time all cases. Each record is appended to ``config.output`` and then yielded.

    Raises:
        ValueError: A case cannot be timed.
    """
    timed = [(run, case) for name, run in KINDS.items() for case in getattr(config, name)]
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
            append_record(config.output, record)
            yield record
