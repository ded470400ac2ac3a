"""Encode texts quickly in one process, by looking up words that were encoded before."""

import json
import re
from itertools import chain

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast


# White space as ``tokenizers`` defines it; Python's ``\s`` matches more characters.
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_WORD = re.compile(f"[{_SPACE}]*[^{_SPACE}]+|[{_SPACE}]+")
MAX_WORDS = 2**19  # about 100 MB
MAX_WORD_CHARACTERS = 32  # longer ones seldom repeat: text without spaces, such as Chinese, is one word up to its end


class Encoder:
    """Encodes texts without special tokens; the name of a special token in a text is encoded as ordinary text.

    No token of a byte-level BPE spans the end of a word and the white space after it. A text therefore has the same
    tokens if each word is encoded alone, with the white space before it, and most words of a text repeat.

    Args:
        tokenizer: Any fast tokenizer. Only plain byte-level BPE uses the word lookup; others encode whole texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        written = tokenizer.backend_tokenizer.to_str()
        self.backend = Tokenizer.from_str(written)
        self.backend.no_padding()
        self.backend.no_truncation()
        self.backend.encode_special_tokens = True
        self._looks_up = encodes_words_alone(json.loads(written))
        self._ids_of_word: dict[str, list[int]] = {}

    def ids(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, ``(N,)`` int32."""
        if self._looks_up:
            return [self._ids_of_words(text) for text in texts]
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def _ids_of_words(self, text: str) -> np.ndarray:
        words, known = _WORD.findall(text), self._ids_of_word
        new = [word for word in dict.fromkeys(words) if word not in known]
        if len(known) + len(new) > MAX_WORDS:
            known.clear()
            new = list(dict.fromkeys(words))
        for word, encoding in zip(new, self.backend.encode_batch_fast(new, add_special_tokens=False), strict=True):
            known[word] = encoding.ids
        ids = np.fromiter(chain.from_iterable(map(known.__getitem__, words)), dtype=np.int32)
        for word in new:
            if len(word) > MAX_WORD_CHARACTERS:
                del known[word]
        return ids


def encodes_words_alone(backend: dict) -> bool:
    """Whether a parsed ``tokenizer.json`` is plain byte-level BPE with GPT-2's word splitting."""
    splitter, model = backend["pre_tokenizer"] or {}, backend["model"]
    return (
        backend["normalizer"] is None
        and splitter.get("type") == "ByteLevel"
        and splitter["use_regex"]
        and not splitter["add_prefix_space"]
        and model["type"] == "BPE"
        and not model["dropout"]
        and all(token["special"] for token in backend["added_tokens"])
    )
