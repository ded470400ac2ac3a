"""``alibi-gpt report``."""

from pathlib import Path
from typing import Annotated

import typer

from alibi_gpt_cli.console import print_result
from alibi_gpt_cli.options import Config, Json, Settings


def report(
    config: Config = None,
    records: Annotated[
        list[str] | None, typer.Option(metavar="FILE.jsonl ...", help="Records that other commands wrote.")
    ] = None,
    output_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder for report.html, report.md and figures/.")
    ] = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Heading of the page.")] = None,
    csv: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder for the records as CSV, one file for each kind.")
    ] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Turn records into a report: one HTML file that opens anywhere, Markdown tables, PNG figures.

    alibi-gpt report --records runs/demo/alibi/training.jsonl runs/demo/extrapolation.jsonl --output-dir runs/demo
    """
    from modeling_alibi_gpt.report.frames import write_csv
    from modeling_alibi_gpt.report.report import ReportConfig, build_report
    from modeling_alibi_gpt.report.written_page import build_written_page
    from modeling_alibi_gpt.runtime.config import load_config
    from modeling_alibi_gpt.runtime.records import read_checked_records

    named = {"records": records or None, "output_dir": output_dir, "title": title}
    what = load_config(ReportConfig, config, settings or (), **named)
    read = [record for path in what.records for record in read_checked_records(path)]
    place = {"page": what.page, "figures_folder": what.figures_folder}
    if what.template is None:
        paths = build_report(read, what.output_dir, title=what.title, html=what.html, claims=what.claims, **place)
    else:
        paths = build_written_page(read, what.template, what.output_dir, **place)
    conclusion = paths.pop("conclusion", None)
    if csv is not None:
        Path(csv).mkdir(parents=True, exist_ok=True)
        paths["csv"] = write_csv(read, csv)
    if conclusion and conclusion.sentences:
        print(conclusion.text(), end="\n\n")
    print(f"{len(read)} records, {len(paths['figures'])} figures: open {paths['html'] or paths['markdown']}")
    print_result({**paths, "conclusion": conclusion.sentences if conclusion else []}, as_json)
