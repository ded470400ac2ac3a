"""The model of an experiment, new or from a checkpoint, fitted to its tokenizer and its training length."""

import dataclasses
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.modeling_alibi_gpt import AlibiGPTForCausalLM
from modeling_alibi_gpt.training.experiment import ExperimentConfig, ModelSection, read_mapping, refuse_unknown_key


def model_config(section: ModelSection) -> PreTrainedConfig:
    """Configuration of the model that a section describes, before it is fitted to tokenizer and training length.

    Raises:
        ValueError: The configuration cannot be read or is not valid.
    """
    return _new_config(section, {}) if section.checkpoint is None else _checkpoint_config(section)


def build_model(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Build the model of an experiment; a new one takes its weights from torch's random state.

    A new model's ``train_context_length`` is the length it trains at; that of a checkpoint only ever grows.

    Raises:
        ValueError: The configuration is not valid, the checkpoint cannot be loaded, or the tokenizer has more tokens
            than the model.
    """
    section, length = config.model, config.data.train_length_tokens
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if section.checkpoint is None:
        new_config = _new_config(section, {**special, "train_context_length": length})
        _check_vocabulary(tokenizer, new_config.vocab_size)
        model = AlibiGPTForCausalLM._from_config(new_config, attn_implementation=section.attn_implementation)
    else:
        _check_vocabulary(tokenizer, _checkpoint_config(section).get_text_config().vocab_size)
        model = _load_checkpoint(section)
        for name, value in special.items():
            setattr(model.config, name, value)
        if hasattr(model.config, "train_context_length"):
            model.config.train_context_length = max(length, model.config.train_context_length)
    return model


def _new_config(section: ModelSection, derived: dict[str, Any]) -> AlibiGPTConfig:
    fields = dict(section.config) if isinstance(section.config, dict) else read_mapping(section.config)
    model_type = fields.pop("model_type", "alibi_gpt")
    if model_type != "alibi_gpt":
        raise ValueError(f"model.config is of type {model_type!r}, expected alibi_gpt")
    try:
        return AlibiGPTConfig(**{**fields, **section.overrides, **derived})
    except StrictDataclassError as error:
        raise ValueError(f"model.config: {error}") from error


def _checkpoint_config(section: ModelSection) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(section.checkpoint)
        for key in section.overrides:
            refuse_unknown_key(key, [field.name for field in dataclasses.fields(config)], "model.overrides.")
        return AutoConfig.from_pretrained(section.checkpoint, **section.overrides)
    except (OSError, StrictDataclassError) as error:
        raise ValueError(f"model.checkpoint {section.checkpoint}: {error}") from error


def _load_checkpoint(section: ModelSection) -> PreTrainedModel:
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            section.checkpoint,
            config=_checkpoint_config(section),
            dtype="float32",
            attn_implementation=section.attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"model.checkpoint {section.checkpoint} cannot be loaded: {error}") from error
    # A position method that starts to learn here has new parameters, which start from the config.
    missing = [name for name in loading["missing_keys"] if ".position_method." not in name]
    if missing:
        raise ValueError(f"model.checkpoint {section.checkpoint} lacks weights, among them {min(missing)}")
    return model


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but the model only {vocab_size}; "
            f"set vocab_size to at least {len(tokenizer)} or choose another tokenizer"
        )
