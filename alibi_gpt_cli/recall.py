"""``alibi-gpt recall``."""

from typing import Annotated, Any

import typer

from alibi_gpt_cli.console import print_result
from alibi_gpt_cli.options import Config, Json, Settings, TrustRemoteCode


def recall(
    config: Config = None,
    models: Annotated[
        list[str] | None, typer.Option(metavar="DIR ...", help="Checkpoint folders, each with its tokenizer.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="task:copy, task:recall or task:passkey as it was trained, or prompt:passkey for any."
        ),
    ] = None,
    lengths: Annotated[
        list[int] | None, typer.Option(metavar="TOKENS ...", help="Lengths of the sequences, any beyond training.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FILE.jsonl", help="Gets a record as soon as a row is done.")
    ] = None,
    settings: Settings = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Measure whether models find what they have read, by length of the sequence and depth of the item.

    Run it again and it goes on. prompt:passkey asks any language model for a number in a long English text.

    alibi-gpt recall --models runs/bloom-560m --data prompt:passkey --lengths 1024 2048 4096 --set depths=[0,0.5,1]
    """
    from modeling_alibi_gpt.evaluation.recall import RecallConfig, format_recall, run_recall
    from modeling_alibi_gpt.runtime.config import load_config
    from modeling_alibi_gpt.runtime.distributed import process_state
    from modeling_alibi_gpt.runtime.remote_code import trusting_remote_code

    named = {"models": models or None, "lengths_tokens": lengths or None, "source": data, "output": output}
    grid = load_config(RecallConfig, config, settings or (), **named)
    with trusting_remote_code(trust_remote_code):
        rows = run_recall(grid, on_row=_print_row)
    process_state().print(
        f"\nshare of right answers, by length in tokens\n{format_recall(rows)}\nrecords in {grid.output}"
    )
    fields = ("name", "length_tokens", "depth", "accuracy", "token_accuracy", "error")
    in_short = [{field: row[field] for field in fields} for row in rows]
    print_result({"output": grid.output, "num_rows": len(rows), "rows": in_short}, as_json)


def _print_row(row: dict[str, Any]) -> None:
    from tqdm.auto import tqdm

    depth = "" if row["depth"] is None else f", depth {row['depth']:g}"
    figure = row["error"] or f"{row['accuracy']:.2f} of the answers, {row['token_accuracy']:.2f} of their tokens"
    tqdm.write(f"{row['name']}, {row['length_tokens']:,} tokens{depth}: {figure}")
