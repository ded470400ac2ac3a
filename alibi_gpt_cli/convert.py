"""``alibi-gpt convert``."""

from typing import Annotated

import typer

from alibi_gpt_cli.console import print_result
from alibi_gpt_cli.options import Config, Json, Settings


def convert(
    config: Config = None,
    model: Annotated[
        str | None, typer.Option(metavar="DIR|NAME", help="Checkpoint folder, or name on the Hub.")
    ] = None,
    output_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="New folder; with --to gguf it gets model.gguf.")
    ] = None,
    to: Annotated[str | None, typer.Option(metavar="FAMILY", help="alibi_gpt (default), bloom, mpt or gguf.")] = None,
    flavour: Annotated[
        str | None,
        typer.Option(metavar="LIBRARY", help="Whose MPT it is: transformers (default) or llm-foundry."),
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickled weights if the checkpoint has no others.")
    ] = False,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Convert BLOOM, MPT, Falcon with ALiBi or GPT-2 to AlibiGPT, or AlibiGPT to BLOOM, MPT or GGUF.

    alibi-gpt convert --model bigscience/bloom-560m --output-dir runs/bloom-560m
    """
    from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig
    from modeling_alibi_gpt.checkpoints.convert.conversion import convert as convert_checkpoint
    from modeling_alibi_gpt.runtime.config import load_config

    named = {"model": model, "output_dir": output_dir, "to": to, "flavour": flavour}
    result = convert_checkpoint(
        load_config(ConvertConfig, config, settings or (), **named, allow_pickle=allow_pickle or None)
    )
    print(f"{result['converted_from']} as {result['model_type']}: {result['output_dir']}")
    if result["left_out"]:
        print(f"left out: {', '.join(result['left_out'])}; fine-tune before use")
    for engine, fields in result["differs_in"].items():
        print(f"not for {engine}, which leaves out {fields}")
    print_result(result, as_json)
