"""``alibi-gpt train``."""

from alibi_gpt_cli.console import print_result
from alibi_gpt_cli.options import Json, RequiredConfig, Settings, TrustRemoteCode


def train(
    config: RequiredConfig,
    settings: Settings = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Train a model, from scratch or from a checkpoint.

    Killed at any moment, the same command goes on.

    torchrun --nproc_per_node N -m alibi_gpt_cli train ... trains in N processes.

    alibi-gpt train --config configs/experiment/demo.yaml --set training.max_steps=100
    """
    from modeling_alibi_gpt.runtime.config import load_config
    from modeling_alibi_gpt.runtime.distributed import process_state
    from modeling_alibi_gpt.runtime.remote_code import trusting_remote_code
    from modeling_alibi_gpt.training.experiment import ExperimentConfig
    from modeling_alibi_gpt.training.trainer import train as run_training

    with trusting_remote_code(trust_remote_code):
        record = run_training(load_config(ExperimentConfig, config, settings or ()))
    process_state().print(
        f"{record['name']}: validation perplexity {record['validation_perplexity']:.2f} after "
        f"{record['num_train_tokens']:,} tokens; model in {record['model_dir']}"
    )
    print_result({key: value for key, value in record.items() if key not in ("loss_history", "provenance")}, as_json)
    # One that ends while another still holds a connection to it can make that one abort.
    process_state().wait_for_everyone()
    process_state().destroy_process_group()
