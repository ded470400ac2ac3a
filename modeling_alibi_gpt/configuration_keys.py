# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Extra keys that a config may contain, and suggestions for unknown keys. Exported to the Hub."""

import difflib
from collections.abc import Collection
from typing import Any

from transformers import GenerationConfig


# Keys that transformers, its quantizers and its loaders pass to a config in addition to declared fields.
_ALLOWED_EXTRA_KEYS = {
    "attn_implementation",
    "auto_map",
    "dtype",
    "experts_implementation",
    "is_causal",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "torch_dtype",
}
# Names of other libraries for these fields, which users are likely to try first.
_FOREIGN_NAMES = {
    "max_position_embeddings": "train_context_length",
    "n_positions": "train_context_length",
    "n_ctx": "train_context_length",
    "n_embd": "hidden_size",
    "d_model": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "n_inner": "intermediate_size",
    "relative_attention_num_buckets": "t5_num_buckets",
    "relative_attention_max_distance": "t5_max_distance",
    "rope_parameters": "rope_extension",
    "rope_scaling": "rope_extension",
    "beta": "alibi_beta",
    "slopes": "alibi_slopes",
}


def refuse_unknown_keys(values: dict[str, Any], fields: Collection[str]) -> None:
    """Raise ValueError for a key that neither AlibiGPT nor transformers knows, and suggest a field."""
    for key in values:
        if _is_unknown(key, fields):
            close = _FOREIGN_NAMES.get(key) or next(iter(difflib.get_close_matches(key, fields, n=1)), None)
            hint = f"did you mean '{close}'?" if close else "see its docstring for all fields"
            raise ValueError(f"unknown field '{key}' in AlibiGPTConfig; {hint}")


def foreign_keys(values: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """Keys that other programs left in a saved config, except those that look like AlibiGPT fields."""
    return {
        key: value
        for key, value in values.items()
        if _is_unknown(key, fields) and not key.startswith("alibi_") and key not in _FOREIGN_NAMES
    }


def refuse_misspelled(values: dict[str, Any], fields: Collection[str]) -> None:
    """Raise ValueError for a key that looks like an AlibiGPT field but is none."""
    foreign = foreign_keys(values, fields)
    refuse_unknown_keys({key: value for key, value in values.items() if key not in foreign}, fields)


def _is_unknown(key: str, fields: Collection[str]) -> bool:
    allowed = _ALLOWED_EXTRA_KEYS | set(GenerationConfig._get_default_generation_params())
    return key not in allowed and not key.startswith("_") and key not in fields
