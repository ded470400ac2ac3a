"""``alibi-gpt context``."""

from alibi_gpt_cli.grid import Row, measure_grid
from alibi_gpt_cli.options import Config, Data, Json, Models, Rows, Settings, TrustRemoteCode


FIELDS_IN_SHORT = ("name", "reading", "kept_tokens", "nats_per_token", "difference_nats", "error")
TITLE = "nats per token above the whole context, with the text beyond so many tokens replaced or cut off"


def context(
    config: Config = None,
    models: Models = None,
    data: Data = None,
    output: Rows = None,
    settings: Settings = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Measure whether models use distant text: the loss when that text is replaced by another document's, or cut off.

    The same command resumes a measurement that was stopped.

    alibi-gpt context --models runs/demo/alibi runs/demo/rope --data "text:books/*.txt"
    """
    from modeling_alibi_gpt.evaluation.context import ContextConfig, run_context
    from modeling_alibi_gpt.report.context_tables import context_table

    measure_grid(
        ContextConfig,
        run_context,
        config=config,
        settings=settings,
        named={"models": models or None, "source": data, "output": output},
        trust_remote_code=trust_remote_code,
        describe_row=_describe_row,
        table=context_table,
        title=TITLE,
        fields_in_short=FIELDS_IN_SHORT,
        as_json=as_json,
    )


def _describe_row(row: Row) -> str:
    kept = "" if row["kept_tokens"] is None else f" beyond {row['kept_tokens']:,} tokens"
    figure = row["error"] or f"{row['nats_per_token']:.4f} nats per token"
    return f"{row['name']}, {row['reading']}{kept}: {figure}"
