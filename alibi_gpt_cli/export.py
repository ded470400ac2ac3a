"""``alibi-gpt export``."""

from typing import Annotated

import typer

from alibi_gpt_cli.console import print_result
from alibi_gpt_cli.options import Config, Json, Settings


def export(
    config: Config = None,
    model: Annotated[str | None, typer.Option(metavar="DIR", help="Checkpoint folder.")] = None,
    output_dir: Annotated[str | None, typer.Option(metavar="DIR", help="New folder.")] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Write a folder that carries its code, for from_pretrained(..., trust_remote_code=True) without this package.

    alibi-gpt export --model runs/demo/alibi --output-dir runs/demo/hub && hf upload NAME/REPO runs/demo/hub
    """
    from modeling_alibi_gpt.checkpoints.hub import ExportConfig, export_to_hub
    from modeling_alibi_gpt.runtime.config import load_config

    result = export_to_hub(load_config(ExportConfig, config, settings or (), model=model, output_dir=output_dir))
    print(f"{len(result['files'])} files in {result['output_dir']}; upload them with: hf upload NAME/REPO DIR")
    print_result(result, as_json)
