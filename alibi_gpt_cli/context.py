"""``alibi-gpt context``."""

from typing import Annotated, Any

import typer

from alibi_gpt_cli.console import print_result
from alibi_gpt_cli.options import Config, Data, Json, Settings, TrustRemoteCode


def context(
    config: Config = None,
    models: Annotated[
        list[str] | None, typer.Option(metavar="DIR ...", help="Checkpoint folders, each with its tokenizer.")
    ] = None,
    data: Data = None,
    output: Annotated[
        str | None, typer.Option(metavar="FILE.jsonl", help="Gets a record as soon as a row is done.")
    ] = None,
    settings: Settings = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Measure whether models use distant text: the loss where it is replaced by another document's, or cut off.

    Run it again and it goes on.

    alibi-gpt context --models runs/demo/alibi runs/demo/rope --data "text:books/*.txt"
    """
    from modeling_alibi_gpt.evaluation.context import ContextConfig, format_context, run_context
    from modeling_alibi_gpt.runtime.config import load_config
    from modeling_alibi_gpt.runtime.distributed import process_state
    from modeling_alibi_gpt.runtime.remote_code import trusting_remote_code

    named = {"models": models or None, "source": data, "output": output}
    grid = load_config(ContextConfig, config, settings or (), **named)
    with trusting_remote_code(trust_remote_code):
        rows = run_context(grid, on_row=_print_row)
    process_state().print(
        f"\nnats per token above the whole context, where what lies beyond so many tokens is replaced or cut off\n"
        f"{format_context(rows)}\nrecords in {grid.output}"
    )
    fields = ("name", "reading", "kept_tokens", "nats_per_token", "difference_nats", "error")
    in_short = [{field: row[field] for field in fields} for row in rows]
    print_result({"output": grid.output, "num_rows": len(rows), "rows": in_short}, as_json)


def _print_row(row: dict[str, Any]) -> None:
    from tqdm.auto import tqdm

    kept = "" if row["kept_tokens"] is None else f" beyond {row['kept_tokens']:,} tokens"
    figure = row["error"] or f"{row['nats_per_token']:.4f} nats per token"
    tqdm.write(f"{row['name']}, {row['reading']}{kept}: {figure}")
