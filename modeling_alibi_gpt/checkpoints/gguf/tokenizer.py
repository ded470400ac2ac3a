"""Write a byte-level BPE tokenizer to GGUF, and check that llama.cpp tokenizes like it."""

import json
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils import logging


logger = logging.get_logger(__name__)

# MPT's normalizer. llama.cpp does not normalize text for a byte-level BPE, so its tokens agree for text that is
# already in NFC, as nearly all text is, and may differ for other text (such as an accent that follows its letter).
NFC = {"type": "NFC"}
# The values for which llama.cpp's "gpt-2" splits and merges alike; None is a missing part.
_GPT2_PARTS: dict[str, tuple[Any, ...]] = {
    "normalizer": (None, NFC),
    "pre_tokenizer.type": ("ByteLevel",),
    "pre_tokenizer.add_prefix_space": (False,),
    "pre_tokenizer.use_regex": (True,),
    "model.type": ("BPE",),
    "model.dropout": (None, 0.0),
    "model.continuing_subword_prefix": (None, ""),
    "model.end_of_word_suffix": (None, ""),
    "model.byte_fallback": (False,),
    "model.ignore_merges": (None, False),
}
# Where an added token is found: llama.cpp finds it within words too, and leaves the spaces around it.
_ADDED_TOKEN_FLAGS = ("lstrip", "rstrip", "single_word")


def check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise a ValueError that names all differences between a tokenizer and llama.cpp's byte-level BPE of GPT-2.

    An NFC normalizer is accepted with a warning, because the tokens of a text that is not in NFC may differ.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    found = {path: _part(parts, path) for path in _GPT2_PARTS}
    wrong = [
        f"{path} = {found[path]!r} (expected {' or '.join(map(repr, accepted))})"
        for path, accepted in _GPT2_PARTS.items()
        if found[path] not in accepted
    ]
    if num_added := tokenizer.num_special_tokens_to_add():
        wrong.append(f"it adds {num_added} special tokens around a text (expected 0)")
    wrong += [
        f"added token {added['content']!r} has {', '.join(flags)} (expected none)"
        for added in parts["added_tokens"]
        if (flags := [name for name in _ADDED_TOKEN_FLAGS if added[name]])
    ]
    if wrong:
        raise ValueError(f"llama.cpp does not support this tokenizer: {', '.join(wrong)}")
    if found["normalizer"] == NFC:
        logger.warning("this tokenizer normalizes text to NFC, but llama.cpp does not: pass it text in NFC")


def add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> None:
    """Add the tokenizer to a ``gguf.GGUFWriter``; embeddings without a token become unused tokens."""
    from gguf import TokenType

    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = [f"[UNUSED{index}]" for index in range(vocab_size)]
    types = [TokenType.UNUSED] * vocab_size
    for token, index in parts["model"]["vocab"].items():
        tokens[index], types[index] = token, TokenType.NORMAL
    for added in parts["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED

    writer.add_tokenizer_model("gpt2")
    # llama.cpp splits alike for both; its converter writes these names for the tokenizers of GPT-2 and MPT.
    writer.add_tokenizer_pre("mpt" if parts["normalizer"] == NFC else "gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in parts["model"]["merges"]])
    for add_id, index in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if index is not None:
            add_id(index)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if isinstance(templates := tokenizer.chat_template, dict):
        templates = [{"name": name, "template": template} for name, template in templates.items()]
    if templates:
        writer.add_chat_template(templates)


def _part(parts: dict[str, Any], path: str) -> Any:
    value: Any = parts
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
