"""``alibi-gpt train``."""

from datetime import timedelta
from typing import Annotated, Any

import typer

from alibi_gpt_cli.console import print_result
from alibi_gpt_cli.options import Json, RequiredConfig, Settings, TrustRemoteCode


def train(
    config: RequiredConfig,
    settings: Settings = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do not train; print parameters, tokens, memory and time per step.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Train a model, from scratch or from a checkpoint.

    The same command resumes a training that was killed.

    'torchrun --nproc_per_node N -m alibi_gpt_cli train ...' trains in N processes.

    alibi-gpt train --config configs/experiment/demo.yaml --set training.max_steps=100
    """
    from modeling_alibi_gpt.runtime.config import load_config
    from modeling_alibi_gpt.runtime.distributed import process_state
    from modeling_alibi_gpt.runtime.remote_code import trusting_remote_code
    from modeling_alibi_gpt.training.experiment import ExperimentConfig
    from modeling_alibi_gpt.training.trainer import train as run_training

    with trusting_remote_code(trust_remote_code):
        experiment = load_config(ExperimentConfig, config, settings or ())
        if dry_run:
            from modeling_alibi_gpt.training.dry_run import dry_run as measure

            plan = measure(experiment)
            print(_described(plan))
            return print_result(plan, as_json)
        record = run_training(experiment)
    process_state().print(
        f"{record['name']}: validation perplexity {record['validation_perplexity']:.2f} after "
        f"{record['num_train_tokens']:,} tokens; model in {record['model_dir']}"
    )
    print_result({key: value for key, value in record.items() if key not in ("loss_history", "provenance")}, as_json)
    # torch requires that no process exits before all are done, and that the group is destroyed before that.
    process_state().wait_for_everyone()
    process_state().destroy_process_group()


def _described(plan: dict[str, Any]) -> str:
    from modeling_alibi_gpt.checkpoints.model_size import format_bytes

    memory = {
        "weights": plan["weights_bytes"],
        "gradients": plan["gradients_bytes"],
        "optimizer": plan["optimizer_bytes"],
        "activations": plan["activations_bytes"],
    }
    lines = [f"{plan['name']}: {plan['num_parameters']:,} parameters"]
    lines += [f"  {part:12} {number:>15,}" for part, number in plan["num_parameters_by_part"].items()]
    lines += [
        f"{plan['num_steps']:,} steps of {plan['num_sequences_per_step']:,} sequences of "
        f"{plan['train_length_tokens']:,} tokens: {plan['num_train_tokens']:,} tokens",
        "  read from a stream, whose length is unknown"
        if plan["num_epochs"] is None
        else f"  {plan['num_epochs']:.2f} epochs over the {plan['num_text_tokens']:,} tokens of the training text",
        f"memory on {plan['device']} in {plan['precision']}: {format_bytes(sum(memory.values()))}, estimated",
    ]
    lines += [f"  {part:12} {format_bytes(number):>15}" for part, number in memory.items()]
    lines.append("  activations are what one forward pass keeps for its backward pass; temporary buffers come on top")
    if plan["peak_memory_bytes"] is not None:
        lines.append(f"  peak as measured: {format_bytes(plan['peak_memory_bytes'])}")
    lines += [
        f"{plan['seconds_per_step']:.3g} s per step, the median of {plan['num_timed_steps']} measured here",
        f"  {timedelta(seconds=round(plan['train_seconds']))} in all, without evaluations and checkpoints",
        "nothing was trained, and the output folder is untouched",
    ]
    return "\n".join(lines)
