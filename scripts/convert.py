"""Turn a checkpoint of BLOOM, MPT, Falcon with ALiBi or GPT-2 into AlibiGPT, or AlibiGPT into BLOOM, MPT or GGUF.

python scripts/convert.py --model bigscience/bloom-560m --output-dir runs/bloom-560m
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="settings, YAML or JSON")
    parser.add_argument("--model", metavar="DIR|NAME", help="checkpoint folder, or name on the Hub")
    parser.add_argument("--output-dir", metavar="DIR", help="folder to make")
    parser.add_argument("--to", metavar="FAMILY", help="alibi_gpt (default), bloom, mpt or gguf")
    parser.add_argument(
        "--reader", metavar="PROGRAM", help="who reads an MPT: transformers (default), llama.cpp or vllm"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read pickled weights where there are no others")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. as_transformers=true"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    from modeling_alibi_gpt.reporting.console import run_command

    def command() -> dict[str, Any]:
        from modeling_alibi_gpt.conversion.convert import ConvertConfig, convert
        from modeling_alibi_gpt.training.experiment import load_config

        options = {"model": args.model, "output_dir": args.output_dir, "to": args.to, "reader": args.reader}
        config = load_config(
            ConvertConfig, args.config, args.set, **options, allow_pickle=True if args.allow_pickle else None
        )
        result = convert(config)
        print(f"{result['converted_from']} as {result['model_type']}: {result['output_dir']}")
        if result["left_out"]:
            print(f"left out: {', '.join(result['left_out'])}; fine-tune before use")
        return result

    return run_command(command)


if __name__ == "__main__":
    # Python puts this folder first on its path, where evaluate.py would hide the library of that name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
