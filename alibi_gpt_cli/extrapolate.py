"""``alibi-gpt extrapolate``."""

from alibi_gpt_cli.grid import Row, measure_grid
from alibi_gpt_cli.options import Config, Data, Json, Lengths, Models, Rows, Settings, TrustRemoteCode


FIELDS_IN_SHORT = ("name", "protocol", "length_tokens", "perplexity", "error")


def extrapolate(
    config: Config = None,
    models: Models = None,
    lengths: Lengths = None,
    data: Data = None,
    output: Rows = None,
    settings: Settings = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Measure the perplexity of several models over a grid of lengths, under both protocols.

    The same command resumes a measurement that was stopped.

    'torchrun --nproc_per_node N -m alibi_gpt_cli extrapolate ...' shares the windows among N processes.

    alibi-gpt extrapolate --models runs/demo/alibi runs/demo/rope --lengths 128 256 512 1024 2048
    """
    from modeling_alibi_gpt.evaluation.extrapolation import ExtrapolationConfig, run_extrapolation
    from modeling_alibi_gpt.report.tables import extrapolation_table

    measure_grid(
        ExtrapolationConfig,
        run_extrapolation,
        config=config,
        settings=settings,
        named={"models": models or None, "lengths_tokens": lengths or None, "source": data, "output": output},
        trust_remote_code=trust_remote_code,
        describe_row=_describe_row,
        table=extrapolation_table,
        fields_in_short=FIELDS_IN_SHORT,
        as_json=as_json,
    )


def _describe_row(row: Row) -> str:
    figure = row["error"] or f"perplexity {row['perplexity']:.3f}"
    return f"{row['name']}, {row['protocol']}, {row['length_tokens']:,} tokens: {figure}"
