"""``alibi-gpt screen``."""

from typing import Annotated

import typer

from alibi_gpt_cli.console import print_result
from alibi_gpt_cli.options import Json


def screen(
    records: Annotated[
        list[str], typer.Option(metavar="FILE.jsonl ...", help="Records of screens, written by alibi-gpt compare.")
    ],
    as_json: Json = False,
) -> None:
    """Print every method with the best settings that a screen found, as variants for the next comparison.

    alibi-gpt screen --records runs/comparison/screen_gutenberg/comparison.jsonl
    """
    import yaml

    from modeling_alibi_gpt.report.screen import best_variants
    from modeling_alibi_gpt.runtime.records import read_checked_records

    variants = best_variants([record for path in records for record in read_checked_records(path)])
    print(yaml.safe_dump({"variants": variants}, default_flow_style=None, sort_keys=False, width=110), end="")
    print_result({"variants": variants}, as_json)
