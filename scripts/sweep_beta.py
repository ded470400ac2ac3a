"""Tune beta on validation perplexity; start the command several times to share the trials out.

python scripts/sweep_beta.py --config configs/sweep/beta.yaml --set betas="[0.5, 1, 2]"
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="sweep, YAML or JSON")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. mode=posthoc")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    from modeling_alibi_gpt.reporting.console import run_command

    def command() -> dict[str, Any]:
        import optuna

        from modeling_alibi_gpt.evaluation.beta_sweep import SweepConfig, run_sweep
        from modeling_alibi_gpt.training.experiment import load_config

        logging.basicConfig(format="%(message)s")
        logging.getLogger("modeling_alibi_gpt").setLevel(logging.INFO)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        result = run_sweep(load_config(SweepConfig, args.config, args.set))
        _print_trials(result["trials"])
        print(result["choice"])
        if result["best_model"] is None:
            print("its model lies on the machine that trained it: run the command there to get best_model")
        return result

    return run_command(command)


def _print_trials(path: str) -> None:
    from modeling_alibi_gpt.reporting.records import read_records
    from modeling_alibi_gpt.reporting.tables import beta_table, group_by, trained_beta_table

    tables = {"beta_trial": beta_table, "trained_beta": trained_beta_table}
    for kind, records in group_by(read_records(path), lambda record: record["kind"]).items():
        table = tables[kind](records)
        print("\n".join("".join(cell.rjust(16) for cell in row) for row in (table.header, *table.rows)), end="\n\n")


if __name__ == "__main__":
    # Python puts this folder first on its path, where evaluate.py would hide the library of that name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
