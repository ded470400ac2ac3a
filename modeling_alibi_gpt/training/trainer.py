"""One training run with transformers.Trainer: prepare, resume, train, measure and save."""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from modeling_alibi_gpt.checkpoints.load import position_method
from modeling_alibi_gpt.data.packing import PackedCollator
from modeling_alibi_gpt.data.streaming import StreamedBlocks
from modeling_alibi_gpt.evaluation.bias_record import (
    bias_by_distance,
    bias_by_distance_records,
    bias_matrix_records,
)
from modeling_alibi_gpt.runtime.atomic import write_json
from modeling_alibi_gpt.runtime.distributed import process_state, sync_errors
from modeling_alibi_gpt.runtime.manifest import write_manifest
from modeling_alibi_gpt.runtime.parsing import read_mapping
from modeling_alibi_gpt.runtime.records import provenance, write_records
from modeling_alibi_gpt.training.arguments import build_arguments, checkpointing_options
from modeling_alibi_gpt.training.auto_precision import faster_precision
from modeling_alibi_gpt.training.beta_schedule import BetaScheduleCallback
from modeling_alibi_gpt.training.deterministic_trainer import DeterministicTrainer
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.finished import finished_record
from modeling_alibi_gpt.training.length_schedule import scheduled_length
from modeling_alibi_gpt.training.log_lines import print_log_lines
from modeling_alibi_gpt.training.milestones import MilestoneCallback
from modeling_alibi_gpt.training.model_setup import build_model, model_identity
from modeling_alibi_gpt.training.preflight import check_experiment, check_num_steps
from modeling_alibi_gpt.training.prepared_data import PreparedData, prepare_data
from modeling_alibi_gpt.training.run_folder import (
    BATCH,
    MODEL,
    PRECISION_FILE,
    RECORD_FILE,
    check_model,
    check_output_dir,
    claimed_output_dir,
    newest_checkpoint,
    save_model_folder,
    whole_checkpoints_on_a_full_disk,
)
from modeling_alibi_gpt.training.task_data import validation_figures
from modeling_alibi_gpt.training.throughput import ThroughputCallback, known_peak_flops
from modeling_alibi_gpt.training.training_card import save_training_card


def train(
    config: ExperimentConfig, *, callbacks: Sequence[TrainerCallback] = (), start: Path | None = None
) -> dict[str, Any]:
    """Run an experiment to its end and return its ``training`` record.

    After a kill at any moment, the same call resumes from the last complete checkpoint and reaches the same weights.
    After the end, it checks that the model is intact and returns the record again. Under a launcher, every process
    must call it. With a ``global_batch_size``, a run may resume with another number of processes, which changes only
    the dropout masks.

    Args:
        config: The experiment.
        callbacks: Callbacks in addition to Trainer's own.
        start: A checkpoint of another run to start from, whose steps so far are identical to those of this run.

    Raises:
        ValueError: The experiment is invalid, its text, model or batches have changed since the run started, or
            ``start`` or the model of a finished run is missing or damaged.
        OSError: The disk is full; everything written before is intact.
    """
    with sync_errors():
        arguments = check_experiment(config)
        output_dir, is_main = Path(arguments.output_dir), process_state().is_main_process
        check_output_dir(output_dir, config)
        finished = finished_record(output_dir, reads_model=is_main)
        if finished is not None and is_main:
            check_model(output_dir, model_identity(config.model))
    if finished is not None:
        return finished | {"model_dir": arguments.output_dir}  # the folder may have been moved
    with ExitStack() as held, whole_checkpoints_on_a_full_disk(output_dir):
        return _train_to_the_end(config, arguments, callbacks, start, held)


def _train_to_the_end(
    config: ExperimentConfig,
    arguments: TrainingArguments,
    callbacks: Sequence[TrainerCallback],
    start: Path | None,
    held: ExitStack,
) -> dict[str, Any]:
    """What ``train`` does if the run is not finished; ``held`` keeps the claim of its folder."""
    output_dir, is_main = Path(arguments.output_dir), process_state().is_main_process
    with sync_errors():  # the main process goes first and fills the caches for the others
        data = prepare_data(config) if is_main else None
    data = data or prepare_data(config)
    set_seed(arguments.seed)
    model = build_model(config, data.tokenizer)
    use_cache = model.config.use_cache  # Trainer turns it off
    with sync_errors():
        batch = str(_global_batch_size(arguments))
        identity = {**data.text, MODEL: model_identity(config.model), BATCH: batch}
        if is_main:
            held.enter_context(claimed_output_dir(output_dir, config, identity))

    bias_before, model_class = bias_by_distance(model), type(model)  # sharding changes its class
    trainer = make_trainer(config, arguments, model, data, [*_callbacks_of(config, data), *callbacks])
    checkpoint = newest_checkpoint(output_dir, start, identity)
    if checkpoint and isinstance(data.train, StreamedBlocks):
        data.train.load(Path(checkpoint))
    # An evaluation at the start of a resumed training would count once more, for example for early stopping.
    trainer.args.eval_on_start = trainer.args.eval_on_start and checkpoint is None
    result = trainer.train(resume_from_checkpoint=checkpoint)
    record = _record(config, trainer, data, result.metrics["train_runtime"], checkpoint)
    whole = trainer.whole_model(model_class)
    with sync_errors():
        if whole is not None:
            whole.config.use_cache = use_cache
            _save(config, whole, data, output_dir, record, bias_before)
    return record


def _save(
    config: ExperimentConfig,
    model: PreTrainedModel,
    data: PreparedData,
    output_dir: Path,
    record: dict[str, Any],
    bias_before: list[list[list[float]]] | None,
) -> None:
    """Write the trained model, its card and, last, the records, which mark the run as finished."""
    write_manifest(output_dir, save_model_folder(model, data.tokenizer, output_dir))
    save_training_card(config, record, model.config, output_dir)
    biases = bias_by_distance_records(model, config.name, bias_before)
    write_records(output_dir / RECORD_FILE, [record, *bias_matrix_records(model, config.name), *biases])


def _callbacks_of(config: ExperimentConfig, data: PreparedData) -> list[TrainerCallback]:
    """The callbacks of an experiment; beta is set before anything is measured."""
    callbacks: list[TrainerCallback] = []
    if config.alibi_beta_schedule is not None:
        callbacks.append(BetaScheduleCallback(config.alibi_beta_schedule))
    if config.milestones is not None:
        callbacks.append(MilestoneCallback(config, data.validation_stream, data.fingerprint))
    return callbacks


def make_trainer(
    config: ExperimentConfig,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    data: PreparedData,
    callbacks: Sequence[TrainerCallback] = (),
) -> DeterministicTrainer:
    """The Trainer of an experiment whose output folder exists. Precision ``auto`` is measured here, once per run."""
    collator = PackedCollator(data.tokenizer.pad_token_id)
    if isinstance(data.train, StreamedBlocks):
        arguments.ignore_data_skip = True  # a stream restores its own position
        data.train.set_global_batch_size(_global_batch_size(arguments))
    if config.precision == "auto":
        batch = collator([data.train[i] for i in range(min(arguments.per_device_train_batch_size, len(data.train)))])
        if config.loss_chunk_tokens is not None:
            batch["loss_chunk_tokens"] = config.loss_chunk_tokens
        precision = _measured_precision(arguments, model.to(arguments.device), batch)
        arguments = build_arguments(dataclasses.replace(config, precision=precision))
    length, stop = partial(scheduled_length, config.data), config.early_stopping
    early_stopping = [EarlyStoppingCallback(stop.patience_evaluations, stop.min_improvement_nats)] if stop else []
    trainer = DeterministicTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=data.train,
        eval_dataset=data.validation,
        compute_metrics=_mean_nats,
        preprocess_logits_for_metrics=_sequence_nats,
        callbacks=[_CheckOfSteps(config), *callbacks, *early_stopping],
        position_learning_rate=config.position_learning_rate,
        loss_chunk_tokens=config.loss_chunk_tokens,
        length_schedule=length if config.data.train_length_schedule else None,
    )
    peak_flops = config.peak_flops or known_peak_flops(arguments.device, arguments.bf16)
    ThroughputCallback(model, peak_flops, length).add_to(trainer.callback_handler)
    print_log_lines(trainer.callback_handler)
    return trainer


class _CheckOfSteps(TrainerCallback):
    """Calls ``check_num_steps`` when Trainer knows the number of steps, before anything is measured or trained."""

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        check_num_steps(self.config, state.max_steps)


def _global_batch_size(arguments: TrainingArguments) -> int:
    """Sequences per step over all processes."""
    return arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size


def _measured_precision(arguments: TrainingArguments, model: PreTrainedModel, batch: dict[str, Any]) -> str:
    """Measure once and store the result, because a resumed run must keep its precision."""
    path = Path(arguments.output_dir) / PRECISION_FILE
    if not path.exists():
        if arguments.activation_checkpointing:  # Trainer enables it only later
            own, of_torch = checkpointing_options(arguments)
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=of_torch or None, **own)
        write_json(path, faster_precision(model, batch))
    return read_mapping(path)["precision"]


def _sequence_nats(logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """``(B, 2)`` float64: summed nats and number of predicted tokens of each sequence, in place of its logits."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    targets = labels[:, 1:]
    nats = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, reduction="none")
    return torch.stack((nats.double().sum(-1), (targets != -100).sum(-1).double()), dim=-1)


def _mean_nats(prediction: EvalPrediction) -> dict[str, float]:
    nats, num_tokens = prediction.predictions.sum(axis=0)
    return {"nats_per_token": float(nats / num_tokens)}


def _record(
    config: ExperimentConfig, trainer: Trainer, data: PreparedData, train_seconds: float, checkpoint: str | None
) -> dict[str, Any]:
    model, arguments = trainer.model.eval(), trainer.args
    stream, length = data.validation_stream, config.data.train_length_tokens
    figures = validation_figures(trainer, stream, length)
    return {
        "kind": "training",
        "name": config.name,
        "model_dir": arguments.output_dir,
        "position_method": position_method(model.config),
        "seed": arguments.seed,
        "num_parameters": model.num_parameters(),
        "train_length_tokens": length,
        "num_train_tokens": int(trainer.state.num_input_tokens_seen),
        "num_steps": trainer.state.global_step,
        "learning_rate": arguments.learning_rate,
        "position_learning_rate": config.position_learning_rate,
        "validation_nats_per_token": figures["nats_per_token"],
        "validation_perplexity": figures["perplexity"],
        "validation_bits_per_byte": figures["bits_per_byte"],
        "num_validation_tokens": figures["num_tokens"],
        # Time of this call only, without the earlier part of a resumed run.
        "train_seconds": train_seconds,
        "resumed_from": Path(checkpoint).name if checkpoint else None,
        "bf16": arguments.bf16,
        "loss_history": [
            {"step": entry["step"], "nats_per_token": entry["loss"]}
            for entry in trainer.state.log_history
            if "loss" in entry and not arguments.label_smoothing_factor  # a smoothed loss is not nats per token
        ],
        "provenance": provenance(seed=arguments.seed, data_fingerprint=data.fingerprint),
    }
