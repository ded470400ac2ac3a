"""The ``TrainingArguments`` of an experiment: this project's defaults, and what would break its promises refused."""

import dataclasses
import inspect
import typing

import torch
from accelerate.utils import parse_flag_from_env
from transformers import SchedulerType, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from modeling_alibi_gpt.training.experiment import ExperimentConfig, convert_value, refuse_unknown_key


_POSITIVE = (
    "gradient_accumulation_steps",
    "num_train_epochs",
    "per_device_eval_batch_size",
    "per_device_train_batch_size",
)
_METRICS = ("loss", "nats_per_token")
_REFUSED = {
    "bf16": "say 'precision: bfloat16' or 'auto' at the top of the experiment",
    "fp16": "say 'precision: bfloat16' or 'auto' at the top of the experiment",
    "auto_find_batch_size": "the global batch must stay what the experiment says; raise gradient_accumulation_steps",
    "ignore_data_skip": "a run that goes on after a kill would see other data",
    "resume_from_checkpoint": "the same command goes on by itself; to go on from another run set model.checkpoint",
    "save_only_model": "a killed run could not go on from such checkpoints",
}


def build_arguments(config: ExperimentConfig) -> TrainingArguments:
    """``TrainingArguments`` of an experiment, with this project's defaults beneath them.

    Under a launcher this is where the processes find each other.

    Raises:
        ValueError: A field is unknown, refused or has a bad value, the global batch does not divide evenly, or a run
            that goes on after a kill could not log the same losses.
    """
    _check_fields(config)
    values = {
        # Without accelerator this must be said: processes started together would each take itself for the only one.
        "use_cpu": not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"),
        "include_num_input_tokens_seen": "all",
        "greater_is_better": False,  # there are no metrics but losses
        "save_total_limit": 2,
        "ddp_find_unused_parameters": False,
        **config.training,
        "bf16": config.precision == "bfloat16",
    }
    try:
        arguments = TrainingArguments(**values)
    except (TypeError, ValueError, ImportError) as error:
        raise ValueError(f"training: {error}") from error
    if arguments.mixed_precision != ("bf16" if arguments.bf16 else "no"):
        raise ValueError(
            f"the launcher asks for mixed precision {arguments.mixed_precision!r}, which belongs into the experiment: "
            "say 'precision: bfloat16' there"
        )
    if config.precision == "auto" and arguments.world_size > 1:
        raise ValueError("precision 'auto' is measured on one process; name float32 or bfloat16 for several")
    _check_names(arguments)
    _check_intervals(arguments)
    if config.global_batch_size is not None:
        arguments.per_device_train_batch_size = _device_batch_size(config.global_batch_size, arguments)
    return arguments


def _check_fields(config: ExperimentConfig) -> None:
    hints = typing.get_type_hints(TrainingArguments)
    fields = [field.name for field in dataclasses.fields(TrainingArguments)]
    for key, value in config.training.items():
        refuse_unknown_key(key, fields, "training.")
        convert_value(value, hints[key], f"training.{key}")
        if value and key in _REFUSED:
            raise ValueError(f"training.{key} cannot be set: {_REFUSED[key]}")
        if key in _POSITIVE and value <= 0:
            raise ValueError(f"training.{key} must be above 0, got {value}")
    if config.global_batch_size is not None and "per_device_train_batch_size" in config.training:
        raise ValueError("give either global_batch_size or training.per_device_train_batch_size, not both")


def _check_names(arguments: TrainingArguments) -> None:
    """Raise a ValueError for names that Trainer would stumble over only in the middle of a run."""
    available = get_available_reporting_integrations()
    for name in arguments.report_to:
        if name not in available:
            raise ValueError(
                f"training.report_to {name!r} is unknown or not installed; here there are {', '.join(available)}"
            )
    schedule = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(arguments.lr_scheduler_type)])
    for key in arguments.lr_scheduler_kwargs or {}:
        refuse_unknown_key(key, schedule.parameters, "training.lr_scheduler_kwargs.")
    metric = (arguments.metric_for_best_model or "loss").removeprefix("eval_")
    if metric not in _METRICS:
        raise ValueError(f"training.metric_for_best_model must be one of {', '.join(_METRICS)}, got {metric!r}")


def _check_intervals(arguments: TrainingArguments) -> None:
    """Raise a ValueError unless every checkpoint is saved where losses are logged.

    A logged loss is the mean since the one before, and a checkpoint does not hold the part since then.
    """
    name, strategy, steps = "save", arguments.save_strategy, arguments.save_steps
    if strategy == "best":
        name, strategy, steps = "eval", arguments.eval_strategy, arguments.eval_steps
    if strategy == "no" or arguments.logging_strategy == "no":
        return
    if strategy != arguments.logging_strategy:
        raise ValueError(
            f"training.{name}_strategy ({strategy.value}) must be training.logging_strategy "
            f"({arguments.logging_strategy.value}), or one of them 'no'"
        )
    if strategy == "steps":
        if min(steps, arguments.logging_steps) < 1:
            raise ValueError(f"training.{name}_steps and training.logging_steps must be whole numbers of steps")
        if steps % arguments.logging_steps:
            raise ValueError(
                f"training.{name}_steps ({steps}) must be a multiple of training.logging_steps "
                f"({arguments.logging_steps})"
            )


def _device_batch_size(global_batch_size: int, arguments: TrainingArguments) -> int:
    num_devices = arguments.world_size * max(1, arguments.n_gpu)
    num_shares = num_devices * arguments.gradient_accumulation_steps
    if global_batch_size < 1 or global_batch_size % num_shares:
        raise ValueError(
            f"global_batch_size ({global_batch_size}) must be a multiple of devices times accumulation steps "
            f"({num_devices} x {arguments.gradient_accumulation_steps})"
        )
    return global_batch_size // num_shares
