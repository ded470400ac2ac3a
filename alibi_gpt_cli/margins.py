"""``alibi-gpt margins``."""

from typing import Annotated

import typer

from alibi_gpt_cli.console import print_result
from alibi_gpt_cli.options import Json


def margins(
    model: Annotated[str, typer.Option(metavar="DIR", help="Checkpoint folder.")],
    data: Annotated[str, typer.Option(metavar="URI", help="stdlib, text:GLOB or hub:NAME[:CONFIG].")] = "stdlib",
    length_tokens: Annotated[int, typer.Option(help="Tokens read as one window.")] = 4096,
    output: Annotated[
        str | None, typer.Option(metavar="FILE.jsonl", help="File to which the records are appended.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how far each head of a trained model can look: its margin in nats, and its window for alibi_banded.

    alibi-gpt margins --model runs/demo/alibi
    """
    from modeling_alibi_gpt.evaluation.margins import MarginsConfig, measure_margins

    record = measure_margins(MarginsConfig(model=model, source=data, length_tokens=length_tokens, output=output))
    for layer, (nats, windows) in enumerate(
        zip(record["margins_nats_by_layer"], record["windows_tokens_by_layer"], strict=True)
    ):
        print(f"layer {layer}: margins of {', '.join(f'{value:.1f}' for value in nats)} nats")
        print(f"         windows of {', '.join(f'{value:,}' for value in windows)} tokens")
    print_result(record, as_json)
