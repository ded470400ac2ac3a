"""``alibi-gpt generate``."""

from typing import Annotated

import typer

from alibi_gpt_cli.console import print_result
from alibi_gpt_cli.options import Config, Json, Settings, TrustRemoteCode


def generate(
    config: Config = None,
    model: Annotated[str | None, typer.Option(metavar="DIR", help="Checkpoint folder with its tokenizer.")] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Start of the text.")] = None,
    settings: Settings = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Continue a text with a trained model.

    alibi-gpt generate --model runs/demo/alibi --prompt "def main(" --set max_new_tokens=200
    """
    from modeling_alibi_gpt.evaluation.generation import GenerateConfig, generate_text
    from modeling_alibi_gpt.runtime.config import load_config
    from modeling_alibi_gpt.runtime.remote_code import trusting_remote_code

    with trusting_remote_code(trust_remote_code):
        result = generate_text(load_config(GenerateConfig, config, settings or (), model=model, prompt=prompt))
    print(result["text"])
    print_result(result, as_json)
