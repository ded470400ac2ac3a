"""Check an experiment before any text is read and any folder is created."""

import torch
from transformers import PreTrainedConfig, TrainingArguments
from transformers.utils import is_flash_attn_2_available

from modeling_alibi_gpt.attention import attention_backend
from modeling_alibi_gpt.checkpoints.model_size import FLOAT32_BYTES, check_memory
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.data.tasks import is_task
from modeling_alibi_gpt.position_methods import POSITION_METHODS
from modeling_alibi_gpt.training.arguments import build_arguments, checkpointing_options
from modeling_alibi_gpt.training.beta_schedule import refuse_best_model
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.model_setup import model_config
from modeling_alibi_gpt.training.optimizer import learns_positions


def check_experiment(config: ExperimentConfig) -> TrainingArguments:
    """Check the model, batches and arguments of an experiment, and return its arguments.

    Raises:
        ValueError: The model or an argument is invalid, a package is missing, model or batch exceed memory, or a
            position learning rate, beta schedule, milestone or chunked loss would have no effect, or reentrant
            checkpointing or flex attention on a CPU would fail.
    """
    arguments = build_arguments(config)
    model = model_config(config.model)
    if isinstance(model, AlibiGPTConfig):
        check_back_end(config.model.attn_implementation, "model.")
        check_gradients(config.model.attn_implementation, arguments.device.type)
    if config.position_learning_rate != 1.0 and not learns_positions(model):
        raise ValueError(
            f"position_learning_rate {config.position_learning_rate:g} would have no effect: the model learns no "
            "position bias; leave it at 1, or choose a position_method or alibi_trainable that does"
        )
    if config.alibi_beta_schedule is not None:
        refuse_best_model(arguments)
        _check_beta_schedule(config, config.alibi_beta_schedule.start, model)
    if config.loss_chunk_tokens is not None:
        _check_chunked_loss(arguments, model)
    if arguments.max_steps > 0:
        check_num_steps(config, arguments.max_steps)
    _check_checkpointing(arguments, model)
    _check_logits(config, arguments, model)
    return arguments


def check_num_steps(config: ExperimentConfig, num_steps: int) -> None:
    """Raise a ValueError unless ``num_steps`` optimizer steps reach every milestone and the full training length.

    With ``num_train_epochs``, the number is known only when the text has been read.
    """
    of_training = f"the {num_steps} steps that training.max_steps or training.num_train_epochs sets"
    num_short = sum(stage.num_steps for stage in config.data.train_length_schedule or ())
    if num_short >= num_steps:
        raise ValueError(
            f"data.train_length_schedule: its {num_short} steps leave none of {of_training} for "
            f"data.train_length_tokens ({config.data.train_length_tokens})"
        )
    if config.milestones is not None and (last := max(config.milestones.steps)) > num_steps:
        raise ValueError(f"milestones.steps: step {last} is beyond {of_training}")


def check_back_end(name: str | None, where: str) -> None:
    """Raise a ValueError unless AlibiGPT has an attention back end of this name on this machine; None is the default.

    ``where`` is the prefix of ``attn_implementation`` in the user's settings.
    """
    if name is None:
        return
    attention_backend(name)
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError(
            f"{where}attn_implementation 'flash_attention_2' needs the package flash-attn and a supported GPU, "
            "which are not available: use sdpa or flex_attention"
        )


def check_gradients(name: str | None, device_type: str) -> None:
    """Raise a ValueError if this attention back end has no gradients on such a device, so that no step would pass."""
    if name == "flex_attention" and device_type == "cpu":
        raise ValueError(
            "model.attn_implementation 'flex_attention' has no gradients on a CPU: train with sdpa, eager or "
            "alibi_banded"
        )


def _check_beta_schedule(config: ExperimentConfig, start: float, model: PreTrainedConfig) -> None:
    """Raise a ValueError unless a schedule can set the beta of this model to its end, and nothing else sets it."""
    if config.early_stopping is not None:
        raise ValueError(
            "early_stopping cannot be used with alibi_beta_schedule: a training that stops early would end with "
            "another beta than the end of the schedule"
        )
    for field, expected in (("position_method", "alibi"), ("alibi_trainable", "none")):
        if (got := getattr(model, field, None)) != expected:
            raise ValueError(f"alibi_beta_schedule needs a model with {field} {expected}, got {got}")
    if (beta := config.model.overrides.get("alibi_beta", start)) != start:
        raise ValueError(f"model.overrides.alibi_beta {beta} would have no effect: alibi_beta_schedule sets beta")


def _check_chunked_loss(arguments: TrainingArguments, model: PreTrainedConfig) -> None:
    """Raise a ValueError if Trainer would silently compute all logits at once."""
    if not isinstance(model, AlibiGPTConfig):
        raise ValueError(f"loss_chunk_tokens needs an AlibiGPT model, got {model.model_type}: set it to null")
    if arguments.label_smoothing_factor:
        raise ValueError(
            "loss_chunk_tokens and training.label_smoothing_factor cannot both be set: smoothed labels need all "
            "logits at once"
        )


def _check_checkpointing(arguments: TrainingArguments, model: PreTrainedConfig) -> None:
    """Raise a ValueError if the backward pass of each layer would go through one bias that the layers share."""
    _, of_torch = checkpointing_options(arguments)
    # Without any of torch's keys, transformers sets use_reentrant to false; torch's own default is true.
    is_reentrant = bool(of_torch) and of_torch.get("use_reentrant", True)
    if not (arguments.activation_checkpointing and is_reentrant and learns_positions(model)):
        return
    with torch.device("meta"):
        method = POSITION_METHODS[model.position_method](model)
    if not method.bias_differs_by_layer:
        raise ValueError(
            f"position_method {model.position_method} has a learned bias that all layers share, which reentrant "
            "checkpointing cannot train: set use_reentrant: false in training.activation_checkpointing_kwargs"
        )


def _check_logits(config: ExperimentConfig, arguments: TrainingArguments, model: PreTrainedConfig) -> None:
    """Raise a ValueError unless the logits held at once, a lower bound for a batch, fit into memory."""
    length, vocab_size = config.data.train_length_tokens, model.get_text_config().vocab_size
    is_evaluated = arguments.eval_strategy != "no" or arguments.eval_on_start or is_task(config.data.source)
    for kind in ("train", "eval") if is_evaluated else ("train",):
        batch_size = getattr(arguments, f"per_device_{kind}_batch_size")
        num_tokens = batch_size * length
        what = (
            f"{batch_size:,} sequences at once (per_device_{kind}_batch_size, or global_batch_size over devices and "
            f"accumulation steps) of {length:,} tokens"
        )
        if kind == "train" and config.loss_chunk_tokens is not None and config.loss_chunk_tokens < num_tokens:
            num_tokens = config.loss_chunk_tokens
            what = f"{num_tokens:,} tokens at once (loss_chunk_tokens)"
        check_memory(num_tokens * vocab_size * FLOAT32_BYTES, f"the logits of {what}")
