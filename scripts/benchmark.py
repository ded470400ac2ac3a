"""Time attention, whole models and decoding, each beside a reference in the same process, and record the ratios.

python scripts/benchmark.py --config configs/benchmark/cpu.yaml
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE.yaml", help="the cases, such as configs/benchmark/cpu.yaml")
    parser.add_argument("--output", metavar="FILE.jsonl", help="where the records go")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other key; repeatable")
    return parser


def describe(record: dict[str, Any]) -> str:
    length = record.get("length_tokens", record.get("context_tokens"))
    low, high = record["times_reference_quartiles"]
    return (
        f"{record['kind']:15} {record.get('mode', 'decode'):16} {record['dtype']:8} {record['num_heads']:2d} heads "
        f"{length:6,d} tokens {record['name']:22} {record['seconds']:8.4f} s  "
        f"{record['times_reference']:.2f}x {record['reference']} ({low:.2f}-{high:.2f})"
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    from modeling_alibi_gpt.reporting.console import run_command

    def command() -> dict[str, Any]:
        from modeling_alibi_gpt.benchmarking.benchmark import BenchmarkConfig, run_benchmark
        from modeling_alibi_gpt.training.experiment import load_config

        config = load_config(BenchmarkConfig, args.config, args.set, output=args.output)
        num_records = 0
        for record in run_benchmark(config):
            num_records += 1
            print(describe(record), flush=True)
        return {"output": config.output, "num_records": num_records}

    return run_command(command)


if __name__ == "__main__":
    # Python puts this folder first on its path, where evaluate.py would hide the library of that name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
