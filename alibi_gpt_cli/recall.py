"""``alibi-gpt recall``."""

from typing import Annotated

import typer

from alibi_gpt_cli.grid import Row, measure_grid
from alibi_gpt_cli.options import Config, Json, Lengths, Models, Rows, Settings, TrustRemoteCode


FIELDS_IN_SHORT = ("name", "length_tokens", "depth", "accuracy", "token_accuracy", "error")
TITLE = "share of correct answers, by length in tokens"


def recall(
    config: Config = None,
    models: Models = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="The trained task (task:copy, task:recall, task:passkey), or prompt:passkey for any model.",
        ),
    ] = None,
    lengths: Lengths = None,
    output: Rows = None,
    settings: Settings = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Measure whether models recall an item of the text, by length of the sequence and depth of the item.

    prompt:passkey asks any language model for a number in a long English text. The same command resumes a measurement
    that was stopped.

    alibi-gpt recall --models runs/bloom-560m --data prompt:passkey --lengths 1024 2048 4096 --set 'depths=[0,0.5,1]'
    """
    from modeling_alibi_gpt.evaluation.recall import RecallConfig, run_recall
    from modeling_alibi_gpt.report.context_tables import recall_table

    measure_grid(
        RecallConfig,
        run_recall,
        config=config,
        settings=settings,
        named={"models": models or None, "lengths_tokens": lengths or None, "source": data, "output": output},
        trust_remote_code=trust_remote_code,
        describe_row=_describe_row,
        table=recall_table,
        title=TITLE,
        fields_in_short=FIELDS_IN_SHORT,
        as_json=as_json,
    )


def _describe_row(row: Row) -> str:
    depth = "" if row["depth"] is None else f", depth {row['depth']:g}"
    figure = row["error"] or f"{row['accuracy']:.2f} of the answers, {row['token_accuracy']:.2f} of their tokens"
    return f"{row['name']}, {row['length_tokens']:,} tokens{depth}: {figure}"
