"""Turn records into a report: one HTML file that opens anywhere, Markdown tables, PNG figures.

python scripts/report.py --records runs/demo/training.jsonl runs/demo/extrapolation.jsonl --output-dir runs/demo
"""

import argparse
from typing import Any


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", nargs="+", required=True, metavar="FILE.jsonl", help="what other scripts wrote")
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="gets report.html, report.md and figures/")
    parser.add_argument("--title", default="AlibiGPT report", help="heading of the page (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    from modeling_alibi_gpt.reporting.console import run_command

    def command() -> dict[str, Any]:
        from modeling_alibi_gpt.reporting.records import read_records
        from modeling_alibi_gpt.reporting.report import build_report

        records = [record for path in arguments.records for record in read_records(path)]
        paths = build_report(records, arguments.output_dir, title=arguments.title)
        print(f"{len(records)} records, {len(paths['figures'])} figures: open {paths['html']}")
        return paths

    return run_command(command)


if __name__ == "__main__":
    raise SystemExit(main())
