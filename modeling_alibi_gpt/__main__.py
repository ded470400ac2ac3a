"""``alibi-gpt`` and four measurements: ``python -m modeling_alibi_gpt precision --output FILE.jsonl``.

Likewise ``differences``, ``margins --model DIR --data URI`` and ``llama-cpp --model DIR --data URI``.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from alibi_gpt_cli.main import add, main
from modeling_alibi_gpt.conversion.differences import measure_differences
from modeling_alibi_gpt.evaluation.llama_cpp import LlamaCppConfig, measure_llama_cpp
from modeling_alibi_gpt.evaluation.margins import MarginsConfig, measure_margins
from modeling_alibi_gpt.evaluation.precision import measure_precision
from modeling_alibi_gpt.reporting.records import write_records


def precision(output: Annotated[Path, typer.Option(help="The JSON Lines file to write.")]) -> None:
    """Measure what bfloat16, float16 and float32 cost attention with ALiBi, in some minutes on a CPU."""
    write_records(output, measure_precision())


def differences(output: Annotated[Path, typer.Option(help="The JSON Lines file to write.")]) -> None:
    """Measure where other families' code departs from ALiBi, on random models, in a minute on a CPU."""
    write_records(output, measure_differences())


def margins(
    model: Annotated[str, typer.Option(help="Checkpoint folder.")],
    data: Annotated[str, typer.Option(help="stdlib, text:GLOB or hub:NAME[:CONFIG]")] = "stdlib",
    length_tokens: Annotated[int, typer.Option(help="Tokens read as one window.")] = 4096,
    output: Annotated[str | None, typer.Option(help="JSON Lines file to append to.")] = None,
) -> None:
    """Measure how far the heads of a trained model can look, and print the windows of `alibi_banded`."""
    record = measure_margins(MarginsConfig(model=model, source=data, length_tokens=length_tokens, output=output))
    for layer, (nats, windows) in enumerate(
        zip(record["margins_nats_by_layer"], record["windows_tokens_by_layer"], strict=True)
    ):
        typer.echo(f"layer {layer}: margins of {', '.join(f'{value:.1f}' for value in nats)} nats")
        typer.echo(f"         windows of {', '.join(f'{value:,}' for value in windows)} tokens")


def llama_cpp(
    model: Annotated[str, typer.Option(help="Checkpoint folder, with its tokenizer.")],
    data: Annotated[str, typer.Option(help="stdlib, text:GLOB or hub:NAME[:CONFIG]")] = "stdlib",
    output: Annotated[str | None, typer.Option(help="JSON Lines file to append to.")] = None,
) -> None:
    """Run a checkpoint in llama.cpp and say how far it is from PyTorch."""
    for record in measure_llama_cpp(LlamaCppConfig(model=model, source=data, output=output)):
        typer.echo(
            f"{record['length_tokens']:,} tokens, {record['precision']}: log-probabilities within "
            f"{record['max_log_prob_difference_nats']:.1e} nats, "
            f"{record['greedy_tokens_equal']} of {record['num_new_tokens']} greedy tokens equal"
        )


if __name__ == "__main__":
    for command in (precision, differences, margins, llama_cpp):
        add(command)
    sys.exit(main())
