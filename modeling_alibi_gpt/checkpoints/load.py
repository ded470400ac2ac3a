"""Load a complete checkpoint, from safetensors only, and a tokenizer that matches it."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME

from modeling_alibi_gpt.checkpoints.folder import check_hub_index, check_weights
from modeling_alibi_gpt.checkpoints.model_size import check_model_memory
from modeling_alibi_gpt.checkpoints.quantization import check_quantization
from modeling_alibi_gpt.data.tokenizer_files import load_tokenizer
from modeling_alibi_gpt.position_alibi import check_not_in_weights
from modeling_alibi_gpt.runtime.config import refuse_unknown_key
from modeling_alibi_gpt.runtime.parsing import read_mapping
from modeling_alibi_gpt.runtime.remote_code import is_remote_code_trusted, load_failure


# Dtypes of stored weights; models compute in the first two.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPUTE_DTYPES = ("float32", "bfloat16")
# Config fields of other families for the longest length seen in training.
_CONTEXT_FIELDS = ("train_context_length", "max_position_embeddings", "max_seq_len")


def load_model_config(
    model: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    where: str = "overrides.",
    allow_hub: bool = False,
) -> PreTrainedConfig:
    """Load the configuration of a checkpoint, with ``overrides``.

    Args:
        model: Folder, or a name on the Hub if ``allow_hub`` is set.
        overrides: Config fields to replace.
        where: Prefix of an override's key in the user's settings, for messages.
        allow_hub: Whether ``model`` may be a name on the Hub.

    Raises:
        ValueError: The folder is missing, its ``config.json`` cannot be read, an override is unknown, out of range or
            without effect, its ``generation_config.json`` cannot be used, or the weights in the folder do not match
            the configuration.
    """
    folder, overrides = Path(model), overrides or {}
    is_on_hub = allow_hub and not folder.is_dir()
    if not is_on_hub and not (folder / "config.json").is_file():
        raise ValueError(f"{model}: no model here, expected a folder with config.json and model.safetensors")
    try:
        if not is_on_hub:
            read_mapping(folder / "config.json")
        config = AutoConfig.from_pretrained(model, trust_remote_code=is_remote_code_trusted())
        check_overrides(overrides, type(config), where)
        check_not_in_weights(overrides, getattr(config, "alibi_trainable", "none"), where)
        config = AutoConfig.from_pretrained(model, trust_remote_code=is_remote_code_trusted(), **overrides)
        config.validate()  # setting overrides one by one checks only their types
        check_quantization(config)
    except Exception as error:  # configs of other families may raise anything
        what = f"config.json with {dict(overrides)}" if overrides else "config.json"
        raise ValueError(f"{model}: {what} cannot be used: {load_failure(error)}") from error
    if is_on_hub:
        check_hub_index(str(model))
    else:
        _check_generation_config(folder / GENERATION_CONFIG_NAME)
        check_weights(folder, config)
    return config


def load_causal_lm(
    model_dir: str | Path,
    config: PreTrainedConfig | None = None,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    allow_new_positions: bool = False,
) -> PreTrainedModel:
    """Load a causal language model from a checkpoint, in evaluation mode on the CPU.

    Args:
        model_dir: Folder with ``config.json`` and ``*.safetensors``.
        config: Result of ``load_model_config`` for this checkpoint; None loads it without overrides.
        dtype: ``float32`` or ``bfloat16``, for weights and computation.
        attn_implementation: Attention back end; None is the model's default.
        allow_new_positions: Whether missing parameters of the position method may be initialized, for training.

    Raises:
        ValueError: The folder is missing, its weights are missing, truncated or do not match its config, or the model
            does not support the dtype or back end.
    """
    if dtype not in COMPUTE_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(COMPUTE_DTYPES)}, got {dtype!r}")
    config = config or load_model_config(model_dir)
    check_model_memory(config, DTYPES[dtype].itemsize)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            model_dir,
            config=config,
            dtype=DTYPES[dtype],
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=is_remote_code_trusted(),
        )
    except SafetensorError as error:
        raise ValueError(f"{model_dir}: its weights are truncated or damaged ({error}); copy them again") from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ValueError(f"{model_dir}: the model cannot be loaded: {load_failure(error)}") from error
    missing = loading["missing_keys"]
    if allow_new_positions:
        missing = [name for name in missing if ".position_method." not in name]
    for names, complaint in (
        (missing, "weights that config.json requires are missing"),
        (loading["unexpected_keys"], "weights do not belong to the model in config.json"),
    ):
        if names:  # transformers initializes or drops them with only a warning
            raise ValueError(f"{model_dir}: {complaint} ({len(names):,}), e.g. {min(names)}")
    return model.eval()


def load_model_tokenizer(model_dir: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint folder.

    Raises:
        ValueError: The folder has no tokenizer, or one with ids beyond the embeddings of the model.
    """
    vocab_size = load_model_config(model_dir).get_text_config().vocab_size
    tokenizer = load_tokenizer(str(model_dir))
    try:
        check_vocabulary(tokenizer, vocab_size)
    except ValueError as error:
        raise ValueError(f"{model_dir}: {error}, such as the one that the model was trained with") from error
    return tokenizer


def position_method(config: PreTrainedConfig) -> str:
    """The position method of an AlibiGPT, or the model type of another family."""
    return getattr(config, "position_method", config.model_type)


def train_context_length(config: PreTrainedConfig) -> int | None:
    """Longest length in tokens that the model saw in training; None if its config does not say."""
    config = config.get_text_config()
    return next((getattr(config, field) for field in _CONTEXT_FIELDS if getattr(config, field, None)), None)


def checkpoint_fingerprint(model_dir: str | Path) -> str:
    """SHA-256 over the contents of the config and the weight files of a folder."""
    return _fingerprint([Path(model_dir) / "config.json", *sorted(Path(model_dir).glob("*.safetensors"))])


def weights_fingerprint(model_dir: str | Path) -> str:
    """SHA-256 over the contents of the weight files of a folder."""
    return _fingerprint(sorted(Path(model_dir).glob("*.safetensors")))


def _fingerprint(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_overrides(overrides: Iterable[str], config_class: type[PreTrainedConfig], where: str = "") -> None:
    """Raise a ValueError unless every override is a field of the model's own config class."""
    of_any_model = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = {field.name for field in dataclasses.fields(config_class)} - of_any_model
    for key in overrides:
        refuse_unknown_key(key, own, where)


def _check_generation_config(path: Path) -> None:
    """Raise a ValueError unless a file is absent or valid; transformers silently ignores one that does not parse."""
    if not path.is_file():
        return
    values = read_mapping(path)
    try:
        GenerationConfig.from_dict(values)
    except Exception as error:  # a value of another type may raise anything
        raise ValueError(f"{path} cannot be used: {error}") from error


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise a ValueError if a tokenizer can produce an id that the model has no embedding for.

    Ids may have gaps, and the ids that a tokenizer adds around a text may be missing from its vocabulary.
    """
    around_a_text = tokenizer("").input_ids
    needed = 1 + max((*tokenizer.get_vocab().values(), *around_a_text), default=-1)
    if needed > vocab_size:
        raise ValueError(
            f"the tokenizer has ids up to {needed - 1}, but the model has {vocab_size} embeddings; "
            f"set vocab_size to at least {needed} or choose another tokenizer"
        )
