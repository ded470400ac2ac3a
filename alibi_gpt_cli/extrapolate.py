"""``alibi-gpt extrapolate``."""

from typing import Annotated, Any

import typer

from alibi_gpt_cli.console import print_result
from alibi_gpt_cli.options import Config, Data, Json, Settings, TrustRemoteCode


FIELDS_IN_SHORT = ("name", "protocol", "length_tokens", "perplexity", "error")


def extrapolate(
    config: Config = None,
    models: Annotated[
        list[str] | None, typer.Option(metavar="DIR ...", help="Checkpoint folders, each with its tokenizer.")
    ] = None,
    lengths: Annotated[
        list[int] | None, typer.Option(metavar="TOKENS ...", help="Window lengths, any beyond training.")
    ] = None,
    data: Data = None,
    output: Annotated[
        str | None, typer.Option(metavar="FILE.jsonl", help="Gets a record as soon as a row is done.")
    ] = None,
    settings: Settings = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Measure the perplexity of several models over a grid of lengths, under both protocols.

    Run it again and it goes on.

    torchrun --nproc_per_node N -m alibi_gpt_cli extrapolate ... shares the windows among N processes.

    alibi-gpt extrapolate --models runs/demo/alibi runs/demo/rope --lengths 128 256 512 1024 2048
    """
    from modeling_alibi_gpt.evaluation.extrapolation import ExtrapolationConfig, format_grid, run_extrapolation
    from modeling_alibi_gpt.runtime.config import load_config
    from modeling_alibi_gpt.runtime.distributed import process_state
    from modeling_alibi_gpt.runtime.remote_code import trusting_remote_code

    named = {"models": models or None, "lengths_tokens": lengths or None, "source": data, "output": output}
    grid = load_config(ExtrapolationConfig, config, settings or (), **named)
    with trusting_remote_code(trust_remote_code):
        rows = run_extrapolation(grid, on_row=_print_row)
    process_state().print(f"\n{format_grid(rows)}\nrecords in {grid.output}")
    in_short = [{field: row[field] for field in FIELDS_IN_SHORT} for row in rows]
    print_result({"output": grid.output, "num_rows": len(rows), "rows": in_short}, as_json)


def _print_row(row: dict[str, Any]) -> None:
    from tqdm.auto import tqdm

    figure = row["error"] or f"perplexity {row['perplexity']:.3f}"
    tqdm.write(f"{row['name']}, {row['protocol']}, {row['length_tokens']:,} tokens: {figure}")
