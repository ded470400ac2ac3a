"""Train a model, from scratch or from a checkpoint; killed at any moment, the same command goes on.

python scripts/train.py --config configs/experiment/demo.yaml --set training.max_steps=100
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="experiment, YAML or JSON")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. training.seed=1"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the Python code that a checkpoint brings; read it first"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    from modeling_alibi_gpt.reporting.console import run_command
    from modeling_alibi_gpt.training.remote_code import trusting_remote_code

    def command() -> dict[str, Any]:
        from modeling_alibi_gpt.evaluation.processes import process_state
        from modeling_alibi_gpt.training.experiment import ExperimentConfig, load_config
        from modeling_alibi_gpt.training.trainer import train

        record = train(load_config(ExperimentConfig, args.config, args.set))
        process_state().print(
            f"{record['name']}: validation perplexity {record['validation_perplexity']:.2f} after "
            f"{record['num_train_tokens']:,} tokens; model in {record['model_dir']}"
        )
        return {key: value for key, value in record.items() if key not in ("loss_history", "provenance")}

    with trusting_remote_code(args.trust_remote_code):
        return run_command(command)


if __name__ == "__main__":
    # Python puts this folder first on its path, where evaluate.py would hide the library of that name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
