"""Turn records into a report: one HTML file that opens anywhere, Markdown tables, PNG figures.

python scripts/report.py --records runs/demo/training.jsonl runs/demo/extrapolation.jsonl --output-dir runs/demo
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE.yaml", help="the settings below, as a file")
    parser.add_argument("--records", nargs="+", metavar="FILE.jsonl", help="what other scripts wrote")
    parser.add_argument("--output-dir", metavar="DIR", help="gets report.html, report.md and figures/")
    parser.add_argument("--title", help="heading of the page")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other key; repeatable")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    from modeling_alibi_gpt.reporting.console import run_command

    def command() -> dict[str, Any]:
        from modeling_alibi_gpt.reporting.records import read_checked_records
        from modeling_alibi_gpt.reporting.report import ReportConfig, build_report
        from modeling_alibi_gpt.training.experiment import load_config

        named = {"records": args.records, "output_dir": args.output_dir, "title": args.title}
        config = load_config(ReportConfig, args.config, args.set, **named)
        records = [record for path in config.records for record in read_checked_records(path)]
        page = {name: getattr(config, name) for name in ("title", "page", "figures_folder", "html", "claims")}
        paths = build_report(records, config.output_dir, **page)
        print(f"{len(records)} records, {len(paths['figures'])} figures: open {paths['html'] or paths['markdown']}")
        return paths

    return run_command(command)


if __name__ == "__main__":
    # Python puts this folder first on its path, where evaluate.py would hide the library of that name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
