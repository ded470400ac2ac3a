"""Train the variants of an experiment with the same seeds and read each at every length; run it again and it goes on.

python scripts/compare.py --config configs/comparison/methods_gutenberg.yaml

Start the command several times, each with OMP_NUM_THREADS=1, and the workers share the runs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE.yaml", help="the comparison")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key; repeatable")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    from modeling_alibi_gpt.reporting.console import run_command

    def command() -> dict[str, Any]:
        from modeling_alibi_gpt.evaluation.comparison import ComparisonConfig, run_comparison
        from modeling_alibi_gpt.evaluation.extrapolation import format_grid
        from modeling_alibi_gpt.training.experiment import load_config

        config = load_config(ComparisonConfig, args.config, args.set)
        records = run_comparison(config)
        print(format_grid([record for record in records if record["kind"] == "comparison"]))
        return {"records": str(Path(config.output_dir) / "comparison.jsonl"), "num_records": len(records)}

    return run_command(command)


if __name__ == "__main__":
    # Python puts this folder first on its path, where evaluate.py would hide the library of that name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
