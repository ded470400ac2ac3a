"""Make a folder that loads with trust_remote_code=True where this package is not installed.

python scripts/export_to_hub.py --model runs/demo/alibi --output-dir runs/demo/hub && hf upload NAME/REPO runs/demo/hub
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="settings, YAML or JSON")
    parser.add_argument("--model", metavar="DIR", help="checkpoint folder")
    parser.add_argument("--output-dir", metavar="DIR", help="folder to make")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. model=DIR")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    from modeling_alibi_gpt.reporting.console import run_command

    def command() -> dict[str, Any]:
        from modeling_alibi_gpt.conversion.hub_export import ExportConfig, export_to_hub
        from modeling_alibi_gpt.training.experiment import load_config

        result = export_to_hub(
            load_config(ExportConfig, args.config, args.set, model=args.model, output_dir=args.output_dir)
        )
        print(f"{len(result['files'])} files in {result['output_dir']}; upload them with: hf upload NAME/REPO DIR")
        return result

    return run_command(command)


if __name__ == "__main__":
    # Python puts this folder first on its path, where evaluate.py would hide the library of that name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
