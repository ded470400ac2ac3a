"""Tokenize texts into rows, which training packs, and streams, which evaluation reads."""

import json
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from modeling_alibi_gpt.data.documents import document_rows, pieces_of_row
from modeling_alibi_gpt.data.encoder import Encoder


CALL_CHARACTERS = 1_000_000
TOKENIZATION_VERSION = 1  # part of every cache key; increment it when the same inputs give different tokens

_worker_encoder: Encoder | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a row that is encoded in one call.

    Attributes:
        row: Index of the row.
        document: Index of the document.
        start: Index of the first character in the row.
        text: Text of the part.
    """

    row: int
    document: int
    start: int
    text: str


def token_rows(
    rows: Iterable[tuple[int, str]], tokenizer: PreTrainedTokenizerFast, *, num_proc: int = 1
) -> Iterator[tuple[np.ndarray, bool]]:
    """Tokenize documents in order, lazily: yields int32 ids of a part of a document, and whether it is the first part.

    Every document ends with eos. The name of a special token in a text is encoded as ordinary text, so eos occurs
    only at the end of a document.

    Args:
        rows: Index of the document and text, as given by ``document_rows``.
        tokenizer: Fast tokenizer with an eos token.
        num_proc: Number of processes that encode.
    """
    eos = np.array([tokenizer.eos_token_id], dtype=np.int32)
    before = None
    with _encoded(_calls(rows), tokenizer, num_proc) as encoded:
        for pieces, ids_of in encoded:
            for piece, ids in zip(pieces, ids_of, strict=True):
                is_first = piece.document != before
                if is_first and before is not None:
                    yield eos, False
                before = piece.document
                yield ids, is_first
    if before is not None:
        yield eos, False


def tokenization_key(documents: Dataset, tokenizer: PreTrainedTokenizerFast) -> tuple[Any, ...]:
    """Everything that determines the tokens of documents, as a cache key."""
    return documents._fingerprint, tokenizer_meaning(tokenizer), TOKENIZATION_VERSION


def _calls(rows: Iterable[tuple[int, str]]) -> Iterator[list[Piece]]:
    """Batches of pieces of about ``CALL_CHARACTERS``: a tokenizer's memory grows with characters, not texts."""
    call: list[Piece] = []
    num_characters = 0
    for number, (document, row) in enumerate(rows):
        for start, text in pieces_of_row(row):
            call.append(Piece(number, document, start, text))
            num_characters += len(text)
            if num_characters >= CALL_CHARACTERS:
                yield call
                call, num_characters = [], 0
    if call:
        yield call


@contextmanager
def _encoded(
    calls: Iterator[list[Piece]], tokenizer: PreTrainedTokenizerFast, num_proc: int
) -> Iterator[Iterator[tuple[list[Piece], list[np.ndarray]]]]:
    """Calls in order with the ids of their pieces, encoded in this process or in forked workers."""
    if num_proc == 1:
        encoder = Encoder(tokenizer)
        yield ((call, encoder.ids([piece.text for piece in call])) for call in calls)
        return
    # Fork, as ``datasets`` does: workers share the imported modules.
    context = multiprocessing.get_context("fork")
    with context.Pool(num_proc, _start_worker, (tokenizer,)) as pool:
        yield _in_order(calls, pool, num_ahead=2 * num_proc)


def _in_order(calls: Iterator[list[Piece]], pool: Any, num_ahead: int) -> Iterator[tuple[list[Piece], Any]]:
    """Results of a pool in order, with a bounded number of calls in flight; ``Pool.imap`` reads all input at once."""
    under_way: deque[tuple[list[Piece], Any]] = deque()
    for call in calls:
        under_way.append((call, pool.apply_async(_encode_in_worker, ([piece.text for piece in call],))))
        if len(under_way) > num_ahead:
            done, result = under_way.popleft()
            yield done, result.get()
    for done, result in under_way:
        yield done, result.get()


def _start_worker(tokenizer: PreTrainedTokenizerFast) -> None:
    global _worker_encoder
    _worker_encoder = Encoder(tokenizer)


def _encode_in_worker(texts: list[str]) -> list[np.ndarray]:
    assert _worker_encoder is not None
    return _worker_encoder.ids(texts)


def tokenizer_meaning(tokenizer: PreTrainedTokenizerFast) -> str:
    """Everything that determines the tokens of a text. Padding and truncation are left out: each call changes them."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend = {key: value for key, value in backend.items() if key not in ("padding", "truncation")}
    return json.dumps([backend, tokenizer.eos_token_id], sort_keys=True)


@dataclass(frozen=True)
class TokenStream:
    """Documents as one sequence of tokens, with the size of the text that each token covers.

    Attributes:
        input_ids: ``(N,)`` int64: eos, then every document and its eos.
        num_bytes: ``(N,)`` int32: UTF-8 bytes of each token. A document and its eos sum to the document's bytes.
    """

    input_ids: Tensor
    num_bytes: Tensor


def token_stream(documents: Dataset, tokenizer: PreTrainedTokenizerFast, max_tokens: int | None = None) -> TokenStream:
    """Tokenize the documents in order for evaluation. The first eos is context; every other token is predicted.

    Args:
        documents: Rows with a ``text``.
        tokenizer: Fast tokenizer with an eos token.
        max_tokens: Maximum number of tokens to predict. The stream has one more, and may end inside a document.

    Raises:
        ValueError: There is no document, or ``max_tokens`` is below 1.
    """
    if not len(documents):
        raise ValueError("there is nothing to evaluate: expected at least one document, got none")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    eos, encoder = np.array([tokenizer.eos_token_id]), Encoder(tokenizer).backend
    ids, num_bytes, num_tokens, bytes_left = [eos], [np.array([0])], 0, 0
    pieces = chain.from_iterable(_with_ends(_calls(document_rows(documents)), encoder))
    for _, of_document in groupby(pieces, key=lambda piece: piece[0].document):
        for piece, piece_ids, ends in of_document:
            piece_bytes = _bytes_of_tokens(piece.text, ends)
            piece_bytes[0] += bytes_left  # text that no token of the last piece covered
            bytes_left = piece_bytes[-1]
            ids.append(piece_ids)
            num_bytes.append(piece_bytes[:-1])
            num_tokens += len(piece_ids)
            if max_tokens is not None and num_tokens >= max_tokens:
                break
        ids.append(eos)
        num_bytes.append(np.array([bytes_left]))
        num_tokens, bytes_left = num_tokens + 1, 0
        if max_tokens is not None and num_tokens >= max_tokens:
            break
    stop = None if max_tokens is None else max_tokens + 1
    return TokenStream(
        input_ids=torch.from_numpy(np.concatenate(ids)[:stop]),
        num_bytes=torch.from_numpy(np.concatenate(num_bytes)[:stop].astype(np.int32)),
    )


def join_streams(streams: Sequence[TokenStream]) -> TokenStream:
    """Concatenate streams, without the leading eos of all but the first."""
    first, *others = streams
    return TokenStream(
        input_ids=torch.cat([first.input_ids, *(stream.input_ids[1:] for stream in others)]),
        num_bytes=torch.cat([first.num_bytes, *(stream.num_bytes[1:] for stream in others)]),
    )


def _with_ends(
    calls: Iterator[list[Piece]], encoder: Tokenizer
) -> Iterator[list[tuple[Piece, np.ndarray, np.ndarray]]]:
    """Pieces with their ids, and the end of each token in characters of the piece.

    Computing the ends takes a third of the time, so training does without them.
    """
    for call in calls:
        encodings = encoder.encode_batch([piece.text for piece in call], add_special_tokens=False)
        yield [
            (
                piece,
                np.array(encoding.ids, dtype=np.int64),
                np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)[:, 1],
            )
            for piece, encoding in zip(call, encodings, strict=True)
        ]


def _bytes_of_tokens(text: str, ends: np.ndarray) -> np.ndarray:
    """UTF-8 bytes of each token of a text, then the bytes after the last token (trailing spaces, for example).

    A token covers the text from the end of the previous token to its own end. If several tokens share a character,
    such as an emoji, the first one counts all of its bytes.
    """
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    bytes_of_characters = 1 + (code_points > 0x7F) + (code_points > 0x7FF) + (code_points > 0xFFFF)
    bytes_before = np.concatenate([[0], np.cumsum(bytes_of_characters)])
    ends = np.append(np.maximum.accumulate(ends), len(text))
    return np.diff(bytes_before[ends], prepend=0)
