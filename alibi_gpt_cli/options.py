"""Options that several commands share."""

from typing import Annotated

import typer


Config = Annotated[str | None, typer.Option(metavar="FILE", help="Settings, YAML or JSON.")]
RequiredConfig = Annotated[str, typer.Option(metavar="FILE", help="Settings, YAML or JSON.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A key of the settings, with dots between nested keys; repeatable."
    ),
]
Data = Annotated[
    str | None, typer.Option(metavar="URI", help="stdlib, text:GLOB, jsonl:GLOB, parquet:GLOB or hub:NAME[:CONFIG].")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python code in a checkpoint; read it first.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on the last line.")]
Models = Annotated[
    list[str] | None, typer.Option(metavar="DIR ...", help="Checkpoint folders, each with its tokenizer.")
]
Lengths = Annotated[
    list[int] | None, typer.Option(metavar="TOKENS ...", help="Window lengths; they may exceed the training length.")
]
Rows = Annotated[
    str | None, typer.Option(metavar="FILE.jsonl", help="File for the records; each row is written when it is done.")
]
