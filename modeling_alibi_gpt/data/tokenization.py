"""Tokenizers trained here, and the token streams that training packs and evaluation reads."""

import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from modeling_alibi_gpt.data.corpora import describe_documents
from modeling_alibi_gpt.data.dataset_cache import cached_dataset
from modeling_alibi_gpt.data.tokenizer_files import load_tokenizer
from modeling_alibi_gpt.runtime.manifest import manifest_difference, write_manifest


END_OF_TEXT = "<|endoftext|>"
DOCUMENTS_PER_WRITE = 64
PIECES_PER_CALL = 16
PIECE_CHARACTERS = 250_000  # a tokenizer takes about 160 bytes of memory a character, and one core a text
LONE_NEWLINE = re.compile(r"(?<=\S\n)(?=\S)")
TOKENIZED_FEATURES = Features({"input_ids": List(Value("int32"))})
TOKENIZATION_VERSION = 1  # part of every cache key: raise it when the same inputs give other tokens

logger = logging.getLogger(__name__)


def train_tokenizer(documents: Dataset, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (Radford et al. 2019, sec. 2.2) learnt from the documents.

    Every text decodes to itself. The one special token, ``<|endoftext|>``, begins, ends, pads and stands for the
    unknown (which cannot occur). There is no ``model_max_length``: the model has no limit either.

    Args:
        documents: Rows with a ``text``.
        vocab_size: Tokens of the vocabulary, with the 256 bytes and the special token; a text with too few different
            words to fill it gives a smaller one.

    Raises:
        ValueError: ``vocab_size`` is too small to hold the bytes and the special token.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + 1
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest} (256 bytes and {END_OF_TEXT}), got {vocab_size}")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(documents["text"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def cached_tokenizer(documents: Dataset, vocab_size: int, cache_dir: str | Path) -> PreTrainedTokenizerFast:
    """``train_tokenizer``, done once for the same documents and size and kept in a folder of ``cache_dir``.

    The folder appears whole or not at all, so a run may be killed and several may train at once. Where its files are
    not as its manifest says, or there is none, a warning names the difference and the tokenizer is trained again.
    """
    folder = Path(cache_dir, f"bpe-{vocab_size}-{describe_documents(documents)['fingerprint']}")
    difference = manifest_difference(folder) if folder.exists() else None
    if difference is not None:
        logger.warning("the cached tokenizer %s is trained again, it is not whole: %s", folder, difference)
    if difference is not None or not folder.exists():
        tokenizer = train_tokenizer(documents, vocab_size)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tokenizer-") as beside:
            written = Path(beside, folder.name)
            tokenizer.save_pretrained(written)
            write_manifest(written)
            if difference is not None:
                os.replace(folder, Path(beside, "damaged"))
            try:
                os.replace(written, folder)
            except OSError:
                if not folder.exists():  # otherwise another run was faster, with the same tokenizer
                    raise
    return load_tokenizer(folder)


def tokenize_documents(
    documents: Dataset, tokenizer: PreTrainedTokenizerFast, max_tokens: int | None = None
) -> Dataset:
    """The ``input_ids`` (int32) of every document, ended by eos, as a dataset that is cached on disk.

    A special token spelt out in a text is encoded as the text that it is: only the ends of documents are eos.

    Args:
        documents: Rows with a ``text``.
        tokenizer: Fast tokenizer with an eos token.
        max_tokens: Stops once there are so many: later documents are left out, and the last one may be cut.
    """
    key = (documents._fingerprint, _meaning(tokenizer), TOKENIZATION_VERSION)
    return cached_dataset(
        partial(_tokenized, documents, tokenizer, max_tokens),
        TOKENIZED_FEATURES,
        Hasher.hash(key if max_tokens is None else (*key, max_tokens)),
        rows_per_write=DOCUMENTS_PER_WRITE,
    )


def _tokenized(
    documents: Dataset, tokenizer: PreTrainedTokenizerFast, max_tokens: int | None
) -> Iterator[dict[str, np.ndarray]]:
    total, unit = max_tokens, " tokens"
    if max_tokens is None:
        total, unit = sum(len(text) for text in documents["text"]), " characters"
    with tqdm(desc="Tokenizing", total=total, unit=unit, unit_scale=True, disable=None) as progress:

        def report(text: str, num_tokens: int) -> None:
            progress.update(len(text) if max_tokens is None else num_tokens)

        for ids, _ in _encode(documents["text"], tokenizer, max_tokens, report, with_ends=False):
            yield {"input_ids": np.append(ids, tokenizer.eos_token_id).astype(np.int32)}


def _encode(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerFast,
    max_tokens: int | None = None,
    report: Callable[[str, int], None] = lambda text, num_tokens: None,
    *,
    with_ends: bool = True,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens of each text: their ids, and the character of the text before which each ends.

    With ``max_tokens``, of which the eos of each text is one, nothing is read beyond the call that reaches them; the
    last text may be cut. ``report`` is told of every piece that is done, and of its number of tokens. Ends take a
    fifth of the time; without them the second array is empty.
    """
    num_tokens = 0
    for _, pieces in groupby(_encoded_pieces(texts, tokenizer, with_ends), key=lambda piece: piece[0]):
        ids, ends = [], []
        for _, text, piece_ids, piece_ends in pieces:
            ids.append(piece_ids)
            ends.append(piece_ends)
            num_tokens += len(piece_ids)
            report(text, len(piece_ids))
            if max_tokens is not None and num_tokens >= max_tokens:
                break
        yield np.concatenate(ids), np.concatenate(ends)
        num_tokens += 1
        if max_tokens is not None and num_tokens >= max_tokens:
            return


def _encoded_pieces(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, with_ends: bool
) -> Iterator[tuple[int, str, np.ndarray, np.ndarray]]:
    """Pieces of the texts in order: the number of its text, its own text, ids, and ends counted in the whole text."""
    pieces = ((index, *piece) for index, text in enumerate(texts) for piece in _pieces(text))
    while called := list(islice(pieces, PIECES_PER_CALL)):
        encoded = tokenizer(
            [piece for _, _, piece in called],
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=with_ends,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning beyond model_max_length: documents are cut into blocks later
        )
        offsets_of = encoded["offset_mapping"] if with_ends else [[]] * len(called)
        for (index, start, piece), ids, offsets in zip(called, encoded["input_ids"], offsets_of, strict=True):
            ends = np.array(offsets, dtype=np.int64).reshape(-1, 2)[:, 1] + start
            yield index, piece, np.array(ids, dtype=np.int64), ends


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """A long text in pieces, each with its first character: they are encoded in parallel and in bounded memory.

    Cuts fall behind a newline with no other space around it, where no token of a byte-level BPE crosses: it gives the
    pieces the tokens of the whole.
    """
    start = 0
    while seam := LONE_NEWLINE.search(text, start + PIECE_CHARACTERS):
        yield start, text[start : seam.start()]
        start = seam.start()
    yield start, text[start:]


def _meaning(tokenizer: PreTrainedTokenizerFast) -> str:
    """All that decides the tokens of a text. The object itself changes whenever it is called: it keeps the padding."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend = {key: value for key, value in backend.items() if key not in ("padding", "truncation")}
    return json.dumps([backend, tokenizer.eos_token_id], sort_keys=True)


@dataclass(frozen=True)
class TokenStream:
    """Documents as one sequence of tokens, with the text that each token stands for.

    Attributes:
        input_ids: ``(N,)`` int64: eos, then every document and its eos.
        num_bytes: ``(N,)`` int32: bytes of UTF-8 text; over a document and its eos they sum to the document's.
    """

    input_ids: Tensor
    num_bytes: Tensor


def token_stream(documents: Dataset, tokenizer: PreTrainedTokenizerFast, max_tokens: int | None = None) -> TokenStream:
    """Tokens of the documents in order, for evaluation: the first eos is context, all others are predicted.

    Args:
        documents: Rows with a ``text``.
        tokenizer: Fast tokenizer with an eos token.
        max_tokens: Tokens to predict at most: the stream ends after one more, in the middle of a document if need be.

    Raises:
        ValueError: There is no document, or ``max_tokens`` is below 1.
    """
    if not len(documents):
        raise ValueError("there is nothing to evaluate: expected at least one document, got none")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    ids, num_bytes = [np.array([tokenizer.eos_token_id])], [np.array([0])]
    texts = documents["text"]
    for text, (text_ids, ends) in zip(texts, _encode(texts, tokenizer, max_tokens), strict=False):
        ids.append(np.append(text_ids, tokenizer.eos_token_id))
        num_bytes.append(_bytes_of_tokens(text, ends))
    stop = None if max_tokens is None else max_tokens + 1
    return TokenStream(
        input_ids=torch.from_numpy(np.concatenate(ids)[:stop]),
        num_bytes=torch.from_numpy(np.concatenate(num_bytes)[:stop].astype(np.int32)),
    )


def _bytes_of_tokens(text: str, ends: np.ndarray) -> np.ndarray:
    """UTF-8 bytes of each token of a text, and of its eos, which takes what the tokens left (trailing spaces, say).

    A token takes the text from the end of the one before to its own end. Of the tokens that share a character, such
    as the parts of an emoji, the first takes all of its bytes.
    """
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    bytes_of_characters = 1 + (code_points > 0x7F) + (code_points > 0x7FF) + (code_points > 0xFFFF)
    bytes_before = np.concatenate([[0], np.cumsum(bytes_of_characters)])
    ends = np.append(np.maximum.accumulate(ends), len(text))
    return np.diff(bytes_before[ends], prepend=0)
