"""Continue a text with a trained model.

python scripts/generate.py --model runs/demo/alibi --prompt "def main(" --set max_new_tokens=200
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="settings, YAML or JSON")
    parser.add_argument("--model", metavar="DIR", help="checkpoint folder with its tokenizer")
    parser.add_argument("--prompt", metavar="TEXT", help="what the text begins with")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. temperature=1")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the Python code that a checkpoint brings; read it first"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    from modeling_alibi_gpt.reporting.console import run_command
    from modeling_alibi_gpt.training.remote_code import trusting_remote_code

    def command() -> dict[str, Any]:
        from modeling_alibi_gpt.evaluation.generation import GenerateConfig, generate_text
        from modeling_alibi_gpt.training.experiment import load_config

        result = generate_text(
            load_config(GenerateConfig, args.config, args.set, model=args.model, prompt=args.prompt)
        )
        print(result["text"])
        return result

    with trusting_remote_code(args.trust_remote_code):
        return run_command(command)


if __name__ == "__main__":
    # Python puts this folder first on its path, where evaluate.py would hide the library of that name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
