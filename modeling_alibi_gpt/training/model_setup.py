"""The model of an experiment, new or from a checkpoint, fitted to its tokenizer and its training length."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from modeling_alibi_gpt.checkpoints.folder import check_hub_index, check_weights
from modeling_alibi_gpt.checkpoints.load import check_overrides, check_vocabulary
from modeling_alibi_gpt.checkpoints.model_size import TRAINING_BYTES, check_model_memory
from modeling_alibi_gpt.checkpoints.quantization import check_quantization
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.modeling_alibi_gpt import AlibiGPTForCausalLM
from modeling_alibi_gpt.runtime.parsing import read_mapping
from modeling_alibi_gpt.runtime.remote_code import is_remote_code_trusted, load_failure
from modeling_alibi_gpt.training.experiment import ExperimentConfig, ModelSection


# What a checkpoint with trained slopes holds as weights instead.
_SLOPE_FIELDS = {"alibi_beta", "alibi_slope_kind", "alibi_slopes", "alibi_bias_max"}


def model_config(section: ModelSection) -> PreTrainedConfig:
    """Configuration of the model that a section describes, before it is fitted to tokenizer and training length.

    Raises:
        ValueError: The configuration cannot be read or is not valid, the weights of the checkpoint are not of this
            configuration, or the model cannot be trained in the memory that there is.
    """
    config = _new_config(section, {}) if section.checkpoint is None else _checkpoint_config(section)
    check_model_memory(config, TRAINING_BYTES)
    return config


def laid_over(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields with ``overrides`` laid over them, less the fields of ALiBi where these choose another method."""
    replaced = overrides.get("position_method", "alibi") != "alibi"
    kept = {key: value for key, value in fields.items() if not (replaced and key.startswith("alibi_"))}
    return {**kept, **overrides}


def build_model(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Build the model of an experiment; a new one takes its weights from torch's random state.

    A new model's ``train_context_length`` is the length it trains at; that of a checkpoint only ever grows.

    Raises:
        ValueError: The configuration is not valid, the checkpoint cannot be loaded or cannot read the training length,
            or the tokenizer has ids beyond the embeddings of the model.
    """
    section, length = config.model, config.data.train_length_tokens
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if section.checkpoint is None:
        new_config = _new_config(section, {**special, "train_context_length": length})
        check_vocabulary(tokenizer, new_config.vocab_size)
        model = AlibiGPTForCausalLM._from_config(
            new_config, dtype=torch.float32, attn_implementation=section.attn_implementation
        )
    else:
        check_vocabulary(tokenizer, _checkpoint_config(section).get_text_config().vocab_size)
        model = _load_checkpoint(section)
        _check_length(model, section, length)
        for name, value in special.items():
            setattr(model.config, name, value)
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
    folder = Path(section.checkpoint)
    if folder.is_dir():
        read_mapping(folder / "config.json")
    try:
        config = AutoConfig.from_pretrained(section.checkpoint, trust_remote_code=is_remote_code_trusted())
        check_overrides(section.overrides, type(config), "model.overrides.")
        if (kind := getattr(config, "alibi_trainable", "none")) != "none":
            for key in _SLOPE_FIELDS & section.overrides.keys():
                raise ValueError(
                    f"model.overrides.{key} changes nothing: the slopes of {section.checkpoint} are weights, trained "
                    f"with alibi_trainable {kind}"
                )
        config = AutoConfig.from_pretrained(
            section.checkpoint, trust_remote_code=is_remote_code_trusted(), **section.overrides
        )
        config.validate()  # overrides are set one by one, which checks their types only
        check_quantization(config)
    except Exception as error:  # other families' configs fail in whatever way their code stumbles
        raise ValueError(f"model.checkpoint {section.checkpoint}: {load_failure(error)}") from error
    if folder.is_dir():
        check_weights(folder, config)
    else:
        check_hub_index(section.checkpoint)
    return config


def _load_checkpoint(section: ModelSection) -> PreTrainedModel:
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            section.checkpoint,
            config=_checkpoint_config(section),
            dtype="float32",
            attn_implementation=section.attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=is_remote_code_trusted(),
        )
    except (OSError, SafetensorError, RuntimeError, ImportError) as error:
        raise ValueError(f"model.checkpoint {section.checkpoint} cannot be loaded: {load_failure(error)}") from error
    # A position method that starts to learn here has new parameters, which start from the config.
    missing = [name for name in loading["missing_keys"] if ".position_method." not in name]
    for names, complaint in ((missing, "lacks"), (loading["unexpected_keys"], "has, beyond those of its config,")):
        if names:
            raise ValueError(f"model.checkpoint {section.checkpoint} {complaint} weights, among them {min(names)}")
    return model


def _check_length(model: PreTrainedModel, section: ModelSection, length_tokens: int) -> None:
    try:
        with torch.no_grad():
            model.base_model(input_ids=torch.zeros((1, length_tokens), dtype=torch.long), use_cache=False)
    except (ValueError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"model.checkpoint {section.checkpoint} cannot read data.train_length_tokens = {length_tokens}: {error}"
        ) from error
