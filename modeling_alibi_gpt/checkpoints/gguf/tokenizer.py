"""A byte-level BPE tokenizer in the words of GGUF, and whether llama.cpp would tokenize as it does."""

import json
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils import logging


logger = logging.get_logger(__name__)

# That of MPT. llama.cpp normalizes no text for a byte-level BPE: it tokenizes alike what is in that form already, as
# nearly all text is, and other text (an accent that follows its letter) as if there were no normalizer.
NFC = {"type": "NFC"}
# What a tokenizer may say for llama.cpp's "gpt-2" to split and merge alike; None stands for a part left out.
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


def check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise a ValueError that names all in which llama.cpp's byte-level BPE of GPT-2 differs from a tokenizer.

    A normalizer NFC is let through with a warning: the tokens of a text that is not in NFC differ.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    found = {path: _part(parts, path) for path in _GPT2_PARTS}
    wrong = [
        f"{path} = {found[path]!r} (expected {' or '.join(map(repr, accepted))})"
        for path, accepted in _GPT2_PARTS.items()
        if found[path] not in accepted
    ]
    if num_added := tokenizer.num_special_tokens_to_add():
        wrong.append(f"it puts {num_added} special tokens around a text (expected 0)")
    if wrong:
        raise ValueError(f"llama.cpp cannot tokenize as this tokenizer does: {', '.join(wrong)}")
    if found["normalizer"] == NFC:
        logger.warning("llama.cpp does not normalize text: give it NFC, which the tokenizer here makes of it")


def add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> None:
    """Add the tokenizer to a ``gguf.GGUFWriter``; embeddings beyond its tokens become unused tokens."""
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
    # llama.cpp splits alike for both, and writes these for the tokenizers of GPT-2 and MPT.
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
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _part(parts: dict[str, Any], path: str) -> Any:
    value: Any = parts
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
