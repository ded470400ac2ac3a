"""Log the speed of training and its hardware utilization."""

import re
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler


# FLOPs per second of dense bfloat16 matrix products, from the data sheets, by a part of the GPU's name.
BFLOAT16_PEAK_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "L40S": 362e12,
    "L4": 121e12,
}
GIB = 2**30


def training_flops_per_token(model: PreTrainedModel, length_tokens: int) -> float:
    """FLOPs per token of forward and backward pass, ``6 N + 12 L H Q T``, with attention but without recomputation.

    This is the formula of PaLM's appendix B (Chowdhery et al. 2022, arXiv:2204.02311) for N parameters, L layers, H
    heads of size Q and sequences of T tokens; causal attention is counted as if it were not masked. An embedding table
    that is not tied to the output layer multiplies nothing, so it is not counted.

    Args:
        model: A causal language model, not sharded.
        length_tokens: Sequence length T.
    """
    config = model.config.get_text_config()
    num_parameters = model.num_parameters()
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not embeddings.weight:
        num_parameters -= embeddings.weight.numel()
    return 6 * num_parameters + 12 * config.num_hidden_layers * _attention_size(config) * length_tokens


def known_peak_flops(device: torch.device, bf16: bool) -> float | None:
    """Peak FLOPs per second of one device in bfloat16; None for a CPU, an unknown GPU or another precision."""
    if device.type != "cuda" or not bf16:
        return None
    name = torch.cuda.get_device_name(device)
    if re.search(r"\b(MIG|NVL)\b", name):  # a slice of a card, or a slower card
        return None
    # A longer name, such as L40 for L4, is another GPU; GH200 contains an H200.
    parts = (part for part in BFLOAT16_PEAK_FLOPS if re.search(rf"(\b|G){part}\b", name))
    return next(map(BFLOAT16_PEAK_FLOPS.get, parts), None)


def beta_by_layer(model: nn.Module) -> list[float]:
    """Learned beta of ALiBi in each layer; empty if beta is not learned. Every process must call this."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias_log_beta"):
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            return whole.detach().exp().tolist()
    return []


class ThroughputCallback(TrainerCallback):
    """Adds throughput since the previous log to every training log.

    Time in evaluations, checkpoints and other callbacks after a step, such as milestones, is not counted.

    - ``tokens_per_second`` over all processes
    - ``mfu``, model FLOPs utilization from 0 to 1, if the peak is known
    - ``memory_gib`` of this process: peak reserved memory on a GPU, current resident memory on a CPU
    - ``eta_seconds`` to the last step at this speed
    - ``beta_layer_0`` and so on if beta is learned

    Trainer itself logs ``grad_norm``. Register the callback with ``add_to``, because its position matters.

    Args:
        model: The model, before it is sharded.
        peak_flops: Peak FLOPs per second of one device; None leaves out ``mfu``.
        length: Maps the number of finished steps to the length in tokens of the next step.
        clock: Returns the current time in seconds.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        peak_flops: float | None,
        length: Callable[[int], int],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.flops_at_0 = training_flops_per_token(model, 0)
        self.flops_per_length = training_flops_per_token(model, 1) - self.flops_at_0
        self.peak_flops, self.length, self.clock = peak_flops, length, clock
        self.seconds = self.flops = 0.0
        self.num_tokens = self.num_steps = 0

    def add_to(self, handler: CallbackHandler) -> None:
        """Insert this as the first callback, so that the others log what it adds, and resume after the last one."""
        handler.callbacks.insert(0, self)
        handler.callbacks.append(_Resume(self))

    def resume(self) -> None:
        """Start counting time again."""
        self.resumed_at = self.clock()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.tokens_seen = int(state.num_input_tokens_seen)
        self.resume()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        num_tokens = int(state.num_input_tokens_seen) - self.tokens_seen
        self.tokens_seen += num_tokens
        self.num_tokens += num_tokens
        self.num_steps += 1
        self.flops += num_tokens * (self.flops_at_0 + self.flops_per_length * self.length(state.global_step - 1))
        self._pause()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.resume()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.resume()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: Any, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        if "loss" not in logs or self.num_steps == 0:  # the log of an evaluation, or the final summary
            return
        self._pause()  # logging the loss has synchronized the device
        logs["tokens_per_second"] = self.num_tokens / self.seconds
        if self.peak_flops is not None:
            logs["mfu"] = self.flops / self.seconds / (self.peak_flops * args.world_size * max(1, args.n_gpu))
        logs["memory_gib"] = _memory_bytes(args.device) / GIB
        logs["eta_seconds"] = self.seconds / self.num_steps * (state.max_steps - state.global_step)
        logs.update({f"beta_layer_{layer}": beta for layer, beta in enumerate(beta_by_layer(kwargs["model"]))})
        self.seconds = self.flops = 0.0
        self.num_tokens = self.num_steps = 0

    def _pause(self) -> None:
        now = self.clock()
        self.seconds += now - self.resumed_at
        self.resumed_at = now


class _Resume(TrainerCallback):
    """The last callback, after which time counts again."""

    def __init__(self, throughput: ThroughputCallback) -> None:
        self.throughput = throughput

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.throughput.resume()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.throughput.resume()


def _attention_size(config: PreTrainedConfig) -> int:
    """Number of heads times head size."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_attention_heads * head_dim


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return psutil.Process().memory_info().rss
