"""Build the model of an experiment, new or from a checkpoint, for its tokenizer and training length."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from modeling_alibi_gpt.checkpoints.load import (
    check_overrides,
    check_vocabulary,
    load_causal_lm,
    load_model_config,
    weights_fingerprint,
)
from modeling_alibi_gpt.checkpoints.model_size import TRAINING_BYTES, check_model_memory
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.runtime.parsing import read_mapping
from modeling_alibi_gpt.training.experiment import ExperimentConfig, ModelSection


def model_config(section: ModelSection) -> PreTrainedConfig:
    """Configuration of the model of a section, before it is adapted to tokenizer and training length.

    Raises:
        ValueError: The configuration cannot be read or is invalid, the weights of the checkpoint do not match it, or
            the model is too large to be trained in the available memory.
    """
    config = _new_config(section, {}) if section.checkpoint is None else _checkpoint_config(section)
    check_model_memory(config, TRAINING_BYTES)
    return config


def model_identity(section: ModelSection) -> dict[str, Any]:
    """What a run starts from: the fields of the model's config, and a fingerprint of a local checkpoint's weights.

    JSON values. The files at the paths of a section may change, and the section remains the same.

    Raises:
        ValueError: As in ``model_config``.
    """
    fields = json.loads(model_config(section).to_json_string(use_diff=True))
    for of_file in ("transformers_version", "_name_or_path"):
        fields.pop(of_file, None)
    if section.checkpoint is not None and Path(section.checkpoint).is_dir():
        fields["weights"] = weights_fingerprint(section.checkpoint)
    return fields


def laid_over(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``overrides`` into config fields, and drop ALiBi's fields if the overrides choose another method."""
    replaced = overrides.get("position_method", "alibi") != "alibi"
    kept = {key: value for key, value in fields.items() if not (replaced and key.startswith("alibi_"))}
    return {**kept, **overrides}


def build_model(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Build the model of an experiment; a new model is initialized from torch's random state.

    A new model's ``train_context_length`` is the training length; that of a checkpoint never decreases.

    Raises:
        ValueError: The configuration is invalid, the checkpoint cannot be loaded, does not support the training
            length or cannot isolate documents, or the tokenizer has ids beyond the embeddings of the model.
    """
    section, length = config.model, config.data.train_length_tokens
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if section.checkpoint is None:
        new_config = _new_config(section, {**special, "train_context_length": length})
        check_vocabulary(tokenizer, new_config.vocab_size)
        model = AutoModelForCausalLM.from_config(
            new_config,
            dtype=torch.float32,
            attn_implementation=section.attn_implementation,
            trust_remote_code=False,
        )
    else:
        checkpoint_config = _checkpoint_config(section)
        check_vocabulary(tokenizer, checkpoint_config.get_text_config().vocab_size)
        model = load_causal_lm(
            section.checkpoint,
            checkpoint_config,
            attn_implementation=section.attn_implementation,
            allow_new_positions=True,
        )
        _check_length(model, section, length)
        if config.data.isolate_documents and not _isolates_documents(model, length):
            raise ValueError(
                f"data.isolate_documents needs a model that isolates documents by position_ids, got one of type "
                f"{model.config.model_type}: set it to false, or convert the checkpoint if 'alibi-gpt convert' reads "
                "this type"
            )
        for name, value in special.items():
            setattr(model.config, name, value)
            if config.data.tokenizer not in (None, section.checkpoint):
                setattr(model.generation_config, name, value)
        if hasattr(model.config, "train_context_length"):
            model.config.train_context_length = max(length, model.config.train_context_length)
    return model


def _new_config(section: ModelSection, derived: dict[str, Any]) -> AlibiGPTConfig:
    check_overrides(section.overrides, AlibiGPTConfig, "model.overrides.")
    fields = dict(section.config) if isinstance(section.config, dict) else read_mapping(section.config)
    model_type = fields.pop("model_type", "alibi_gpt")
    if model_type != "alibi_gpt":
        raise ValueError(f"model.config is of type {model_type!r}, expected alibi_gpt")
    try:
        return AlibiGPTConfig(**{**laid_over(fields, section.overrides), **derived})
    except StrictDataclassError as error:
        raise ValueError(f"model.config: {error}") from error


def _checkpoint_config(section: ModelSection) -> PreTrainedConfig:
    assert section.checkpoint is not None
    try:
        return load_model_config(section.checkpoint, section.overrides, where="model.overrides.", allow_hub=True)
    except ValueError as error:
        raise ValueError(f"model.checkpoint {error}") from error


def _check_length(model: PreTrainedModel, section: ModelSection, length_tokens: int) -> None:
    try:
        with torch.no_grad():
            model.base_model(input_ids=torch.zeros((1, length_tokens), dtype=torch.long), use_cache=False)
    except (ValueError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"model.checkpoint {section.checkpoint} does not support data.train_length_tokens = {length_tokens}: "
            f"{error}"
        ) from error


def _isolates_documents(model: PreTrainedModel, length_tokens: int) -> bool:
    """Whether, of two packed documents, the first has no influence on the second; ``model`` is in evaluation mode.

    Some models take ``position_ids`` but build their attention mask without them, so the outputs have to tell.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    size = min(4, length_tokens // 2)  # of either document
    first, other, second = torch.arange(3 * size).split(size)
    input_ids = torch.stack([torch.cat([first, second]), torch.cat([other, second])])
    position_ids = torch.arange(size).repeat(2, 2)
    with torch.no_grad():
        logits = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits[:, size:]
    # Masked keys have weight 0 exactly; the tolerance is for experts, whose sums depend on which tokens share them.
    return bool((logits[0] - logits[1]).abs().max() <= 1e-5 * logits.abs().max())
