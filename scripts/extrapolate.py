"""Perplexity of several models over a grid of lengths, under both protocols; run it again and it goes on.

python scripts/extrapolate.py --models runs/demo/alibi runs/demo/rope --lengths 128 256 512 1024 2048

accelerate launch --num_processes 2 scripts/extrapolate.py ... shares the windows out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="settings, such as configs/evaluation/length_extrapolation.yaml"
    )
    parser.add_argument("--models", nargs="+", metavar="DIR", help="checkpoint folders, each with its tokenizer")
    parser.add_argument("--lengths", nargs="+", type=int, metavar="TOKENS", help="window lengths, any beyond training")
    parser.add_argument("--data", metavar="URI", help="stdlib, text:GLOB or hub:NAME[:CONFIG]")
    parser.add_argument("--output", metavar="FILE.jsonl", help="gets a record as soon as a row is done")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other key; repeatable")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the Python code that a checkpoint brings; read it first"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    from modeling_alibi_gpt.reporting.console import run_command
    from modeling_alibi_gpt.training.remote_code import trusting_remote_code

    def command() -> dict[str, Any]:
        from modeling_alibi_gpt.evaluation.extrapolation import ExtrapolationConfig, format_grid, run_extrapolation
        from modeling_alibi_gpt.evaluation.processes import process_state
        from modeling_alibi_gpt.training.experiment import load_config

        named = {
            "models": args.models,
            "lengths_tokens": args.lengths,
            "source": args.data,
            "output": args.output,
        }
        config = load_config(ExtrapolationConfig, args.config, args.set, **named)
        rows = run_extrapolation(config, on_row=_print_row)
        process_state().print(f"\n{format_grid(rows)}\nrecords in {config.output}")
        fields = ("name", "protocol", "length_tokens", "perplexity", "error")
        compact = [{field: row[field] for field in fields} for row in rows]
        return {"output": config.output, "num_rows": len(rows), "rows": compact}

    with trusting_remote_code(args.trust_remote_code):
        return run_command(command)


def _print_row(row: dict[str, Any]) -> None:
    from tqdm.auto import tqdm

    figure = row["error"] or f"perplexity {row['perplexity']:.3f}"
    tqdm.write(f"{row['name']}, {row['protocol']}, {row['length_tokens']:,} tokens: {figure}")


if __name__ == "__main__":
    # Python puts this folder first on its path, where evaluate.py would hide the library of that name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
