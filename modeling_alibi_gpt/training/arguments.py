"""The ``TrainingArguments`` of an experiment, with this project's defaults and without what breaks its guarantees.

The guarantees are that a killed run resumes to the same weights, and that the number of processes changes nothing.
"""

import dataclasses
import inspect
import multiprocessing
import typing
from collections.abc import Callable, Collection
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import SchedulerType, Trainer, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_scheduler
from transformers.training_args import trainer_log_levels
from transformers.utils import is_liger_kernel_available

from modeling_alibi_gpt.runtime.config import convert_value, refuse_unknown_key
from modeling_alibi_gpt.training.experiment import ExperimentConfig


# Defaults that differ from those of transformers.
DEFAULTS: dict[str, Any] = {
    "include_num_input_tokens_seen": "all",
    "greater_is_better": False,  # all metrics are losses
    "logging_nan_inf_filter": False,  # it logs finite losses of a training that has diverged
    "save_total_limit": 2,
    "ddp_find_unused_parameters": False,
}
# Valid ranges; transformers does not check most of these fields.
_RANGES: dict[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {
    "above 0": (
        lambda value: value > 0,
        (
            *("adam_epsilon", "ddp_bucket_cap_mb", "ddp_timeout", "dataloader_prefetch_factor", "eval_steps"),
            *("eval_accumulation_steps", "gradient_accumulation_steps", "logging_steps", "num_train_epochs"),
            *("per_device_eval_batch_size", "per_device_train_batch_size", "save_steps", "save_total_limit"),
            "torch_empty_cache_steps",
        ),
    ),
    "at least 0": (
        lambda value: value >= 0,
        ("eval_delay", "learning_rate", "max_grad_norm", "neftune_noise_alpha", "warmup_steps", "weight_decay"),
    ),
    "from 0 to 1": (lambda value: 0 <= value <= 1, ("label_smoothing_factor",)),
    "at least 0 and below 1": (lambda value: 0 <= value < 1, ("adam_beta1", "adam_beta2")),
    "at least 0 and below 2**32": (lambda value: 0 <= value < 2**32, ("data_seed", "seed")),
    "from 0 to 1024": (lambda value: 0 <= value <= 1024, ("dataloader_num_workers",)),
    "at least 1, or -1 for num_train_epochs to decide": (lambda value: value >= 1 or value == -1, ("max_steps",)),
}
_RANGE_OF_FIELD = {field: (words, holds) for words, (holds, fields) in _RANGES.items() for field in fields}
# Fields with a fixed set of names, which transformers checks late or not at all.
_CHOICES: dict[str, Collection[Any]] = {
    "dataloader_multiprocessing_context": (None, *multiprocessing.get_all_start_methods()),
    "include_num_input_tokens_seen": ("all", "non_padding"),  # records count the tokens
    "log_level": tuple(trainer_log_levels),
    "log_level_replica": tuple(trainer_log_levels),
    "train_sampling_strategy": ("random", "sequential"),  # the others sort by length, but all sequences have one
}
_EARLY_STOPPING_DEFAULTS = {
    "metric_for_best_model": "nats_per_token",
    "restore_callback_states_from_checkpoint": True,  # otherwise a resumed run restarts its patience
}
_METRICS = ("loss", "nats_per_token")
# Fields that must keep their default.
_REFUSED = {
    "accelerator_config": "its settings change the order of a resumed run's data, or the global batch",
    "average_tokens_across_devices": "the loss would depend on the number of processes",
    "bf16": "set 'precision' of the experiment to bfloat16 or auto instead",
    "fp16": "set 'precision' of the experiment to bfloat16 or auto instead",
    "bf16_full_eval": "an evaluation would round the weights of the model that is saved",
    "fp16_full_eval": "an evaluation would round the weights of the model that is saved",
    "auto_find_batch_size": "the experiment fixes the global batch size; raise gradient_accumulation_steps instead",
    "eval_do_concat_batches": "nats_per_token is computed from the sequences of all batches",
    "ignore_data_skip": "a resumed run would see different data",
    "label_names": "the labels are always called 'labels'",
    "prediction_loss_only": "nats_per_token is computed from the predictions of an evaluation",
    "resume_from_checkpoint": "the same command resumes by itself; to start from another run, set model.checkpoint",
    "save_only_model": "a killed run could not resume from such checkpoints",
    "use_cache": "training needs no cache, and with one some models do not isolate documents",
}


def build_arguments(config: ExperimentConfig) -> TrainingArguments:
    """Build the ``TrainingArguments`` of an experiment on top of this project's defaults.

    Under a launcher, this initializes the process group.

    Raises:
        ValueError: A field is unknown, refused or has an invalid value, the global batch does not divide evenly, or a
            resumed run could not log the same losses.
    """
    _check_fields(config)
    values = {
        # Set this explicitly on CPUs: otherwise every process of a launcher believes that it is the only one.
        "use_cpu": not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"),
        **DEFAULTS,
        **({} if config.early_stopping is None else _EARLY_STOPPING_DEFAULTS),
        **config.training,
        "bf16": config.precision == "bfloat16",
    }
    try:
        arguments = TrainingArguments(**values)
    except (TypeError, ValueError, ImportError) as error:
        raise ValueError(f"training: {error}") from error
    if arguments.mixed_precision != ("bf16" if arguments.bf16 else "no"):
        raise ValueError(
            f"the launcher asks for mixed precision {arguments.mixed_precision!r}, which does not match the "
            "experiment: set its 'precision' instead"
        )
    if config.precision == "auto" and arguments.world_size > 1:
        raise ValueError("precision 'auto' is measured on one process; set float32 or bfloat16 for several")
    _check_sharding(arguments)
    _check_names(arguments)
    _check_schedule(arguments)
    _check_installed(arguments)
    _check_intervals(arguments)
    _check_best_model(arguments)
    if config.early_stopping is not None:
        _check_early_stopping(arguments)
    if config.global_batch_size is not None:
        arguments.per_device_train_batch_size = _device_batch_size(config.global_batch_size, arguments)
    return arguments


def checkpointing_options(arguments: TrainingArguments) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of activation checkpointing that transformers reads itself, and those that it passes to torch."""
    of_torch = dict(arguments.activation_checkpointing_kwargs or {})
    own = {key: of_torch.pop(key) for key in ("every_n_layers", "offload") if key in of_torch}
    return own, of_torch


def _check_fields(config: ExperimentConfig) -> None:
    hints = typing.get_type_hints(TrainingArguments)
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    for key, value in config.training.items():
        refuse_unknown_key(key, defaults, "training.")
        convert_value(value, hints[key], f"training.{key}")
        if key in _REFUSED and value not in (None, defaults[key]):
            raise ValueError(f"training.{key} cannot be set: {_REFUSED[key]}")
        words, holds = _RANGE_OF_FIELD.get(key, ("", lambda value: True))
        if value is not None and not holds(value):
            raise ValueError(f"training.{key} must be {words}, got {value}")
    backend = config.training.get("torch_compile_backend")
    if backend is not None:  # check before transformers, which prints advice for an unknown name
        _check_choice("torch_compile_backend", backend, torch.compiler.list_backends(exclude_tags=None))
    if config.global_batch_size is not None and "per_device_train_batch_size" in config.training:
        raise ValueError("set either global_batch_size or training.per_device_train_batch_size, not both")


def _check_sharding(arguments: TrainingArguments) -> None:
    """Raise a ValueError if sharding is requested on CPUs, where accelerate silently trains whole copies instead."""
    for engine, is_asked in (
        ("FSDP", bool(arguments.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")),
        ("DeepSpeed", arguments.deepspeed is not None or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")),
    ):
        if is_asked and arguments.use_cpu:
            raise ValueError(
                f"{engine} needs accelerators: on CPUs accelerate would silently train a whole copy in every process; "
                "use configs/accelerate/ddp.yaml"
            )


def _check_names(arguments: TrainingArguments) -> None:
    """Raise a ValueError for invalid names that Trainer would reject only once the run folder exists, or later."""
    for key, choices in _CHOICES.items():
        _check_choice(key, getattr(arguments, key), choices)
    available = get_available_reporting_integrations()
    for name in arguments.report_to:
        if name not in available:
            raise ValueError(
                f"training.report_to {name!r} is unknown or not installed; available: {', '.join(available)}"
            )
    metric = (arguments.metric_for_best_model or "loss").removeprefix("eval_")
    if metric not in _METRICS:
        raise ValueError(f"training.metric_for_best_model must be one of {', '.join(_METRICS)}, got {metric!r}")


def _check_schedule(arguments: TrainingArguments) -> None:
    """Raise a ValueError unless the schedule of the learning rate can be built; Trainer does that after the model."""
    kind, values = SchedulerType(arguments.lr_scheduler_type), arguments.lr_scheduler_kwargs or {}
    parameters = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[kind]).parameters
    if "kwargs" not in parameters:
        for key in values:
            refuse_unknown_key(key, parameters, "training.lr_scheduler_kwargs.")
    optimizer, num_steps = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate), max(1, arguments.max_steps)
    try:
        get_scheduler(kind, optimizer, arguments.get_warmup_steps(num_steps), num_steps, values)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"training.lr_scheduler_type {kind.value} cannot be used: {error}; got lr_scheduler_kwargs {values}"
        ) from error


def _check_choice(key: str, value: Any, choices: Collection[Any]) -> None:
    if value not in choices:
        raise ValueError(f"training.{key} must be one of {', '.join(map(str, choices))}, got {value!r}")


def _check_installed(arguments: TrainingArguments) -> None:
    """Raise a ValueError unless the packages of the optimizer and the kernels are installed."""
    if arguments.use_liger_kernel and not is_liger_kernel_available():
        raise ValueError("training.use_liger_kernel needs the package liger-kernel, which is not installed")
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments, torch.nn.Module())
    except (ImportError, ValueError, TypeError) as error:
        # Low-rank optimizers look for their target modules in the model, which does not exist yet.
        is_low_rank = arguments.optim.startswith(("galore", "apollo")) and arguments.optim_target_modules
        if isinstance(error, ImportError) or not is_low_rank:
            raise ValueError(f"training.optim {arguments.optim.value} cannot be used: {error}") from error


def _check_intervals(arguments: TrainingArguments) -> None:
    """Raise a ValueError unless every checkpoint is saved at a step where losses are logged.

    A logged loss is the mean since the previous log, and a checkpoint does not store the partial sum since then.
    """
    name, strategy, steps = "save", arguments.save_strategy, arguments.save_steps
    if strategy == "best":
        name, strategy, steps = "eval", arguments.eval_strategy, arguments.eval_steps
    if strategy == "no" or arguments.logging_strategy == "no":
        return
    if strategy != arguments.logging_strategy:
        raise ValueError(
            f"training.{name}_strategy ({strategy.value}) must equal training.logging_strategy "
            f"({arguments.logging_strategy.value}), or one of them must be 'no'"
        )
    if strategy == "steps":
        if min(steps, arguments.logging_steps) < 1:
            raise ValueError(f"training.{name}_steps and training.logging_steps must be whole numbers of steps")
        if steps % arguments.logging_steps:
            raise ValueError(
                f"training.{name}_steps ({steps}) must be a multiple of training.logging_steps "
                f"({arguments.logging_steps})"
            )


def _check_best_model(arguments: TrainingArguments) -> None:
    """Raise a ValueError if the best model that an evaluation finds might not be saved, so that another is loaded."""
    is_by_steps = arguments.load_best_model_at_end and arguments.save_strategy == "steps"
    if is_by_steps and arguments.eval_steps != arguments.save_steps:
        raise ValueError(
            f"training.eval_steps ({arguments.eval_steps:g}) must equal training.save_steps "
            f"({arguments.save_steps:g}) with load_best_model_at_end, which cannot load a model that was evaluated "
            "but not saved: set them alike, or training.save_strategy to best"
        )


def _check_early_stopping(arguments: TrainingArguments) -> None:
    """Raise a ValueError if early stopping could never stop, or would lose its state in a resumed run."""
    if arguments.eval_strategy == "no":
        raise ValueError("early_stopping needs evaluations: set training.eval_strategy")
    for key in _EARLY_STOPPING_DEFAULTS:
        if not getattr(arguments, key):
            raise ValueError(f"training.{key} cannot be {getattr(arguments, key)} with early_stopping")


def _device_batch_size(global_batch_size: int, arguments: TrainingArguments) -> int:
    num_devices = arguments.world_size * max(1, arguments.n_gpu)
    num_shares = num_devices * arguments.gradient_accumulation_steps
    if global_batch_size < 1 or global_batch_size % num_shares:
        raise ValueError(
            f"global_batch_size ({global_batch_size}) must be a multiple of devices x accumulation steps "
            f"({num_devices} x {arguments.gradient_accumulation_steps})"
        )
    return global_batch_size // num_shares
