"""``alibi-gpt margins``."""

from typing import Annotated

import typer

from alibi_gpt_cli.console import print_result
from alibi_gpt_cli.options import Config, Data, Json, Settings, TrustRemoteCode


def margins(
    config: Config = None,
    model: Annotated[str | None, typer.Option(metavar="DIR", help="Checkpoint folder with its tokenizer.")] = None,
    data: Data = None,
    length_tokens: Annotated[int | None, typer.Option(help="Tokens read as one window.")] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FILE.jsonl", help="File to which the record is appended.")
    ] = None,
    settings: Settings = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Measure how far each head of a trained model can look: its margin in nats, and its window for alibi_banded.

    alibi-gpt margins --model runs/demo/alibi --set length_tokens=2048
    """
    from modeling_alibi_gpt.evaluation.margins import MarginsConfig, measure_margins
    from modeling_alibi_gpt.runtime.config import load_config
    from modeling_alibi_gpt.runtime.remote_code import trusting_remote_code

    named = {"model": model, "source": data, "length_tokens": length_tokens, "output": output}
    with trusting_remote_code(trust_remote_code):
        record = measure_margins(load_config(MarginsConfig, config, settings or (), **named))
    for layer, (nats, windows) in enumerate(
        zip(record["margins_nats_by_layer"], record["windows_tokens_by_layer"], strict=True)
    ):
        print(f"layer {layer}: margins of {', '.join(f'{value:.1f}' for value in nats)} nats")
        print(f"         windows of {', '.join(f'{value:,}' for value in windows)} tokens")
    print_result(record, as_json)
