"""``alibi-gpt evaluate``."""

from typing import Annotated

import typer

from alibi_gpt_cli.console import print_result
from alibi_gpt_cli.options import Config, Data, Json, Settings, TrustRemoteCode


def evaluate(
    config: Config = None,
    model: Annotated[str | None, typer.Option(metavar="DIR", help="Checkpoint folder with its tokenizer.")] = None,
    data: Data = None,
    settings: Settings = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Measure perplexity and bits per byte of one model on one text; every token counts exactly once.

    'torchrun --nproc_per_node N -m alibi_gpt_cli evaluate ...' shares the windows among N processes.

    alibi-gpt evaluate --model runs/demo/alibi --set protocol=sliding --set length_tokens=512
    """
    from modeling_alibi_gpt.evaluation.perplexity import PerplexityConfig, evaluate_perplexity
    from modeling_alibi_gpt.runtime.config import load_config
    from modeling_alibi_gpt.runtime.distributed import process_state
    from modeling_alibi_gpt.runtime.remote_code import trusting_remote_code

    with trusting_remote_code(trust_remote_code):
        record = evaluate_perplexity(load_config(PerplexityConfig, config, settings or (), model=model, source=data))
    stride = f", stride {record['stride_tokens']}" if record["stride_tokens"] else ""
    process_state().print(
        f"{record['name']}: perplexity {record['perplexity']:.3f}, {record['nats_per_token']:.4f} nats per token, "
        f"{record['bits_per_byte']:.4f} bits per byte\n"
        f"over {record['num_tokens']:,} tokens ({record['num_bytes']:,} bytes), "
        f"{record['protocol']} windows of {record['length_tokens']:,} tokens{stride}"
    )
    print_result(record, as_json)
