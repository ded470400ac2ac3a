"""Estimate what a training needs from a few discarded steps: parameters, tokens, memory and time."""

import dataclasses
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    set_seed,
)

from modeling_alibi_gpt.data.streaming import StreamedBlocks
from modeling_alibi_gpt.runtime.distributed import process_state
from modeling_alibi_gpt.training.arguments import build_arguments
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.model_setup import build_model
from modeling_alibi_gpt.training.preflight import check_experiment
from modeling_alibi_gpt.training.prepared_data import PreparedData, prepare_data
from modeling_alibi_gpt.training.run_folder import check_output_dir
from modeling_alibi_gpt.training.trainer import make_trainer


NUM_TIMED_STEPS = 3
MAX_SECONDS = 60.0  # no further step begins after this time
# Turns off everything but the steps.
_STEPS_ALONE = {
    **dict.fromkeys(("save_strategy", "eval_strategy", "logging_strategy"), "no"),
    **dict.fromkeys(("load_best_model_at_end", "push_to_hub", "eval_on_start"), False),
    "report_to": "none",
}
# The order matters: a norm after attention counts as a norm.
_PARTS = {"norms": r"norm|\bln_", "positions": r"position|wpe", "attention": r"attn|attention", "mlp": r"mlp|ffn"}


def dry_run(config: ExperimentConfig) -> dict[str, Any]:
    """Prepare an experiment, time a few of its steps, and estimate what the whole training needs.

    The output folder is not touched. Text and tokenizer are prepared in their caches, which the training then uses.

    Returns:
        ``num_parameters`` and ``num_parameters_by_part``; ``num_steps``, ``num_sequences_per_step``,
        ``num_train_tokens``; ``num_text_tokens`` and ``num_epochs`` over the text, None for a stream;
        ``weights_bytes``, ``gradients_bytes``, ``optimizer_bytes`` and ``activations_bytes``, which is what autograd
        saves in one forward pass, without temporary buffers; ``peak_memory_bytes`` as measured on CUDA, None
        elsewhere; ``seconds_per_step``, the median of ``num_timed_steps``, and ``train_seconds``, estimated from it
        without evaluations and checkpoints.

    Raises:
        ValueError: The experiment is invalid, or several processes were started.
    """
    if process_state().num_processes > 1:
        raise ValueError("a dry run measures one process: run the command without a launcher")
    arguments = check_experiment(config)
    check_output_dir(Path(arguments.output_dir), config)
    data = prepare_data(config)
    set_seed(arguments.seed)
    model = build_model(config, data.tokenizer)
    trainer, clock = _trained_a_little(config, model, data)
    length, num_steps = config.data.train_length_tokens, trainer.state.max_steps
    num_sequences = trainer.get_total_train_batch_size(trainer.args)
    num_text_sequences = None if isinstance(data.train, StreamedBlocks) else len(data.train)
    timed = clock.seconds[1:] or clock.seconds  # the first step warms up caches and kernels
    return {
        "name": config.name,
        "device": str(trainer.args.device),
        "precision": "bfloat16" if trainer.args.bf16 else "float32",
        "num_parameters": model.num_parameters(),
        "num_parameters_by_part": parameters_by_part(model),
        "num_steps": num_steps,
        "num_sequences_per_step": num_sequences,
        "train_length_tokens": length,
        "num_train_tokens": num_steps * num_sequences * length,
        "num_text_tokens": None if num_text_sequences is None else num_text_sequences * length,
        "num_epochs": None if num_text_sequences is None else num_steps * num_sequences / num_text_sequences,
        **_memory(trainer),
        "seconds_per_step": statistics.median(timed),
        "num_timed_steps": len(timed),
        "train_seconds": statistics.median(timed) * num_steps,
    }


def parameters_by_part(model: PreTrainedModel) -> dict[str, int]:
    """Number of parameters in each part of a decoder of any family; tied weights count once, as embeddings."""
    owners = {
        id(parameter): part
        for part, module in (("output", model.get_output_embeddings()), ("embeddings", model.get_input_embeddings()))
        if module is not None
        for parameter in module.parameters()
    }
    numbers: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        named = (part for part, pattern in _PARTS.items() if re.search(pattern, name))
        part = owners.get(id(parameter)) or next(named, "other")
        numbers[part] = numbers.get(part, 0) + parameter.numel()
    return numbers


def _trained_a_little(
    config: ExperimentConfig, model: PreTrainedModel, data: PreparedData
) -> tuple[Trainer, "_Clock"]:
    """The Trainer of an experiment after a few steps in a temporary folder, and the times of the steps."""
    clock = _Clock()
    with tempfile.TemporaryDirectory() as scratch:
        training = {**config.training, **_STEPS_ALONE, "output_dir": scratch}
        trial = dataclasses.replace(config, training=training, early_stopping=None)
        trainer = make_trainer(trial, build_arguments(trial), model, data, [clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer, clock


class _Clock(TrainerCallback):
    """Times whole optimizer steps, and stops training after a few.

    Attributes:
        seconds: Time of each step.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        _synchronize()
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        _synchronize()
        self.seconds.append(time.perf_counter() - self._start)
        control.should_training_stop = len(self.seconds) > NUM_TIMED_STEPS or sum(self.seconds) > MAX_SECONDS


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _memory(trainer: Trainer) -> dict[str, int | None]:
    """Bytes that a step needs; the optimizer must have made a step, so that its state exists."""
    model, states = trainer.model, trainer.optimizer.state.values()
    peak = torch.cuda.max_memory_allocated(trainer.args.device) if trainer.args.device.type == "cuda" else None
    return {
        "weights_bytes": sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
        "gradients_bytes": sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad),
        "optimizer_bytes": sum(
            value.nbytes for state in states for value in state.values() if isinstance(value, Tensor)
        ),
        "activations_bytes": _activation_bytes(trainer, model),
        "peak_memory_bytes": peak,
    }


def _activation_bytes(trainer: Trainer, model: nn.Module) -> int:
    """Bytes that autograd saves in the forward pass of one batch, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))  # of a stream, it is on the CPU
    model.train()
    with saved_tensors_hooks(note, lambda tensor: tensor), trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(model, batch)  # keeps storages alive, so that no address is reused
    del loss
    return sum(kept.values())
