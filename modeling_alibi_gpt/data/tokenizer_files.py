"""Load tokenizers without importing ``datasets``, which generation does not need."""

import os
from pathlib import Path

from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_alibi_gpt.runtime.remote_code import is_remote_code_trusted, load_failure


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a folder or the Hub.

    A folder with only GPT-2's ``vocab.json`` and ``merges.txt`` works too. A tokenizer without a pad token pads with
    its eos token, as is usual for GPT-2.

    Raises:
        ValueError: No tokenizer can be loaded, it needs custom code that is not trusted, it is slow (a slow tokenizer
            cannot map tokens to bytes of text) or it has no eos token.
    """
    name = str(name_or_path)
    try:
        tokenizer = tokenizer_from_pretrained(name)
    except Exception as error:  # tokenizers raises a bare Exception for a damaged file
        raise ValueError(
            f"no tokenizer could be loaded from {name!r} ({load_failure(error)}): expected a folder with "
            "tokenizer.json, one with vocab.json and merges.txt, or the name of a model on the Hub"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"the tokenizer {name!r} is slow: expected a fast one, with a tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer {name!r} has no eos token: expected one, since it ends every document")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_from_pretrained(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer of any kind from a folder or the Hub. Raises whatever transformers or tokenizers raise."""
    files = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}
    if {file for file in files if os.path.exists(os.path.join(name, file))} == {"vocab.json", "merges.txt"}:
        return GPT2Tokenizer.from_pretrained(name, trust_remote_code=False)  # AutoTokenizer cannot infer the class
    return AutoTokenizer.from_pretrained(name, trust_remote_code=is_remote_code_trusted())
