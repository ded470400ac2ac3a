"""One-off measurements: ``python -m benchmarks COMMAND --output FILE.jsonl``; ``--help`` lists the commands."""

import statistics
import sys
from pathlib import Path
from typing import Annotated

import typer

from alibi_gpt_cli.console import ends_in_one_line
from alibi_gpt_cli.main import run_app
from benchmarks.claims import measure_claims
from benchmarks.conversion import measure_differences
from benchmarks.data import measure_encoding, measure_preparation
from benchmarks.engines import EnginesConfig, measure_engines, table
from benchmarks.llama_cpp import LlamaCppConfig, measure_llama_cpp
from benchmarks.loss_memory import measure_loss_memory
from benchmarks.precision import measure_precision
from benchmarks.reports import measure_reports
from benchmarks.serving import measure_serving
from modeling_alibi_gpt.runtime.records import append_record, write_records


app = typer.Typer(help="Measure precision, conversions, memory and llama.cpp.", pretty_exceptions_enable=False)


@app.command()
@ends_in_one_line
def precision(output: Annotated[Path, typer.Option(help="The JSON Lines file to write.")]) -> None:
    """Measure the errors of ALiBi attention in bfloat16, float16 and float32; takes minutes on a CPU."""
    write_records(output, measure_precision())


@app.command()
@ends_in_one_line
def differences(output: Annotated[Path, typer.Option(help="The JSON Lines file to write.")]) -> None:
    """Measure where other model families' code deviates from ALiBi, on random models; takes a minute on a CPU."""
    write_records(output, measure_differences())


@app.command()
@ends_in_one_line
def loss_memory(output: Annotated[Path, typer.Option(help="The JSON Lines file to write.")]) -> None:
    """Measure the memory of the loss over 8,192 tokens, at once and in chunks; needs 8 GB."""
    write_records(output, list(measure_loss_memory()))


@app.command()
@ends_in_one_line
def llama_cpp(
    model: Annotated[str, typer.Option(help="Checkpoint folder, with its tokenizer.")],
    data: Annotated[str, typer.Option(help="stdlib, text:GLOB, jsonl:GLOB or hub:NAME[:CONFIG]")] = "stdlib",
    output: Annotated[str | None, typer.Option(help="JSON Lines file to append to.")] = None,
) -> None:
    """Run a checkpoint in llama.cpp and compare its predictions with those of PyTorch."""
    for record in measure_llama_cpp(LlamaCppConfig(model=model, source=data, output=output)):
        typer.echo(
            f"{record['length_tokens']:,} tokens, {record['precision']}: log-probabilities within "
            f"{record['max_log_prob_difference_nats']:.1e} nats, "
            f"{record['greedy_tokens_equal']} of {record['num_new_tokens']} greedy tokens equal"
        )


@app.command()
@ends_in_one_line
def engines(
    model: Annotated[str, typer.Option(help="Checkpoint folder, with its tokenizer.")],
    family: Annotated[str, typer.Option(help="Family to export it as: mpt or bloom.")],
    gguf: Annotated[list[str] | None, typer.Option(help="GGUF file of the same model; may be repeated.")] = None,
    data: Annotated[str, typer.Option(help="stdlib, text:GLOB, jsonl:GLOB or hub:NAME[:CONFIG]")] = "stdlib",
    output: Annotated[str | None, typer.Option(help="JSON Lines file to append to.")] = None,
) -> None:
    """Run a checkpoint in llama.cpp and CTranslate2, and compare perplexity and predictions with those of PyTorch."""
    config = EnginesConfig(model=model, family=family, gguf_files=gguf or [], source=data, output=output)
    typer.echo(table(measure_engines(config)))


@app.command()
@ends_in_one_line
def serving(
    output: Annotated[Path, typer.Option(help="The JSON Lines file to write.")],
    config: Annotated[str, typer.Option(help="Configuration of the model.")] = "configs/model/tiny.json",
) -> None:
    """Measure memory and time to the first answer of a server on a CPU; takes minutes and 60% of the memory."""
    write_records(output, list(measure_serving(config)))


@app.command()
@ends_in_one_line
def reports(output: Annotated[Path, typer.Option(help="The JSON Lines file to write.")]) -> None:
    """Measure the seconds and the memory of reports over 20,000 records, in a minute."""
    write_records(output, list(measure_reports()))


@app.command()
@ends_in_one_line
def claims(
    output: Annotated[Path, typer.Option(help="JSON Lines file to append to.")],
    num_trials: Annotated[int, typer.Option(help="Trials of each study.")] = 1000,
) -> None:
    """Measure the overhead per trial of a study shared by four workers; takes minutes."""
    for record in measure_claims(num_trials):
        append_record(output, record)


@app.command()
@ends_in_one_line
def data(
    source: Annotated[str, typer.Option(help="Text: stdlib or text:GLOB.")],
    tokenizer: Annotated[str, typer.Option(help="Name or folder of a tokenizer.")],
    output: Annotated[Path, typer.Option(help="JSON Lines file to append to.")],
    num_bytes: Annotated[int | None, typer.Option(help="Prepare a text of this size; default: encode it.")] = None,
    train: Annotated[bool, typer.Option(help="With --num-bytes: train a tokenizer on the text.")] = False,
    file_format: Annotated[str, typer.Option(help="With --num-bytes: text, jsonl or parquet.")] = "text",
    max_tokens: Annotated[int | None, typer.Option(help="With --num-bytes: prepare only so many tokens.")] = None,
) -> None:
    """Measure the cost of preparing a text for training."""
    if num_bytes is None:
        records = measure_encoding(source, tokenizer)
    else:
        how = {"file_format": file_format, "max_tokens": max_tokens}
        records = measure_preparation(source, None if train else tokenizer, num_bytes, **how)
    for record in records:
        append_record(output, record)
        typer.echo(
            f"{record['contestant']}, {record['step']}: {record['num_bytes'] / 1e6:,.0f} MB in "
            f"{statistics.median(record['cpu_seconds']):.1f} CPU-seconds"
        )


if __name__ == "__main__":
    sys.exit(run_app(app, sys.argv[1:] or ["--help"], "python -m benchmarks"))
