"""``alibi-gpt benchmark``."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from alibi_gpt_cli.console import print_result
from alibi_gpt_cli.options import Config, Json, Settings


def benchmark(
    config: Config = None,
    output: Annotated[str | None, typer.Option(metavar="FILE.jsonl", help="File for the records.")] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Time attention, whole models and decoding against a reference in the same process, and record the ratios.

    alibi-gpt benchmark --config configs/benchmark/cpu.yaml
    """
    find_benchmarks()
    from benchmarks.run import BenchmarkConfig, run_benchmark
    from modeling_alibi_gpt.runtime.config import load_config

    cases = load_config(BenchmarkConfig, config, settings or (), output=output)
    num_records = 0
    for record in run_benchmark(cases):
        num_records += 1
        print(_described(record), flush=True)
    print(f"records in {cases.output}")
    print_result({"output": cases.output, "num_records": num_records}, as_json)


def find_benchmarks() -> None:
    """Put the repository's root on the path: benchmarks are not part of the wheel.

    Raises:
        ValueError: The package does not run from a checkout.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / "benchmarks" / "run.py").is_file():
        raise ValueError(
            "benchmarks come with the repository, not with the wheel: clone it and 'pip install -e .' there"
        )
    if str(root) not in sys.path:
        sys.path.append(str(root))


def _described(record: dict[str, Any]) -> str:
    length = record.get("length_tokens", record.get("context_tokens"))
    low, high = record["times_reference_quartiles"]
    return (
        f"{record['kind']:15} {record.get('mode', 'decode'):16} {record['dtype']:8} {record['num_heads']:2d} heads "
        f"{length:6,d} tokens {record['name']:22} {record['seconds']:8.4f} s  "
        f"{record['times_reference']:.2f}x {record['reference']} ({low:.2f}-{high:.2f})"
    )
