"""Token-exact perplexity and bits per byte of one model on one text.

python scripts/evaluate.py --model runs/demo/alibi --data stdlib --set protocol=sliding --set length_tokens=512

accelerate launch --num_processes 2 scripts/evaluate.py ... shares the windows out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE.yaml", help="settings, such as configs/evaluation/perplexity.yaml")
    parser.add_argument("--model", metavar="DIR", help="checkpoint folder with its tokenizer")
    parser.add_argument("--data", metavar="URI", help="stdlib, text:GLOB or hub:NAME[:CONFIG]")
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
        from modeling_alibi_gpt.evaluation.perplexity import PerplexityConfig, evaluate_perplexity
        from modeling_alibi_gpt.evaluation.processes import process_state
        from modeling_alibi_gpt.training.experiment import load_config

        config = load_config(PerplexityConfig, args.config, args.set, model=args.model, source=args.data)
        record = evaluate_perplexity(config)
        stride = f", stride {record['stride_tokens']}" if record["stride_tokens"] else ""
        process_state().print(
            f"{record['name']}: perplexity {record['perplexity']:.3f}, {record['nats_per_token']:.4f} nats per token, "
            f"{record['bits_per_byte']:.4f} bits per byte\n"
            f"over {record['num_tokens']:,} tokens ({record['num_bytes']:,} bytes), "
            f"{record['protocol']} windows of {record['length_tokens']:,} tokens{stride}"
        )
        return record

    with trusting_remote_code(args.trust_remote_code):
        return run_command(command)


if __name__ == "__main__":
    # Python puts this folder first on its path, where evaluate.py would hide the library of that name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
