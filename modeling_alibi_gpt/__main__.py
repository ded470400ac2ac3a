"""The command line of transformers, with AlibiGPT known to it: ``python -m modeling_alibi_gpt serve FOLDER``.

``python -m modeling_alibi_gpt precision --output FILE.jsonl`` is a command of ours.
"""

from pathlib import Path
from typing import Annotated

import transformers
import typer
from transformers.cli.transformers import app, main

from modeling_alibi_gpt import AlibiGPTForCausalLM
from modeling_alibi_gpt.evaluation.precision import measure_precision
from modeling_alibi_gpt.reporting.records import write_records


@app.command()
def precision(output: Annotated[Path, typer.Option(help="The JSON Lines file to write.")]) -> None:
    """Measure what bfloat16 and float16 cost attention with ALiBi, in a minute on a CPU."""
    write_records(output, measure_precision())


if __name__ == "__main__":
    # `serve` looks for the class of a checkpoint among the attributes of transformers, not in its Auto classes.
    transformers.AlibiGPTForCausalLM = AlibiGPTForCausalLM
    main()
