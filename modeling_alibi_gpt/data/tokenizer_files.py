"""Tokenizers from their files, without what trains them: a model that generates needs no ``datasets``."""

import os
from pathlib import Path

from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_alibi_gpt.runtime.remote_code import is_remote_code_trusted, load_failure


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerFast:
    """Any fast tokenizer of Transformers by its name on the Hub or its folder, ready to pack and to measure.

    A folder with nothing but GPT-2's ``vocab.json`` and ``merges.txt`` loads too. A tokenizer without padding token
    pads with its end-of-text token, as GPT-2's users do.

    Raises:
        ValueError: There is no tokenizer, it is code that may not run, it is slow (it cannot say which bytes a
            token stands for) or it has no end-of-text token.
    """
    name = str(name_or_path)
    try:
        tokenizer = _from_pretrained(name)
    except Exception as error:  # for a damaged file the tokenizers library raises nothing more precise
        raise ValueError(
            f"no tokenizer could be loaded from {name!r} ({load_failure(error)}): expected a folder with "
            "tokenizer.json, one with vocab.json and merges.txt, or the name of a model on the Hub"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"the tokenizer {name!r} is slow: expected a fast one, with a tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer {name!r} has no eos token: expected one to end documents with")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _from_pretrained(name: str) -> PreTrainedTokenizerBase:
    files = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}
    if {file for file in files if os.path.exists(os.path.join(name, file))} == {"vocab.json", "merges.txt"}:
        return GPT2Tokenizer.from_pretrained(name, trust_remote_code=False)  # AutoTokenizer cannot tell whose files
    return AutoTokenizer.from_pretrained(name, trust_remote_code=is_remote_code_trusted())
