# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""The name that transformers gives a cache, as an argument and in outputs. Exported to the Hub.

transformers 5.24 renamed ``past_key_values`` to ``cache``. Its ``generate`` passes ``cache`` alone: a model that does
not read it generates without its past, and no error says so. AlibiGPT takes both names with either release.
"""

import inspect
import warnings

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast


# The name that the installed transformers uses.
CACHE_NAME = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"

# For `auto_docstring`, which knows only one of the two.
CACHE_DOCS = r"""
    cache (`Cache`, *optional*):
        Keys and values of the tokens before these.
    past_key_values (`Cache`, *optional*):
        `cache` by the name it had before transformers 5.24.
"""


def cache_name(model: PreTrainedModel) -> str:
    """The name by which a model takes its cache; code from the Hub may keep the old one."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def one_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache that a model was called with under either name; the old one warns where transformers' own models do.

    Raises:
        ValueError: Both are given.
    """
    if cache is not None and past_key_values is not None:
        raise ValueError("got both cache and past_key_values, which name the same argument; expected one of them")
    if past_key_values is None:
        return cache
    if CACHE_NAME == "cache" and not torch.compiler.is_compiling():
        warnings.warn("`past_key_values` is deprecated. Use `cache` instead.", FutureWarning, stacklevel=3)
    return past_key_values
