"""Tokenize documents, pack them into blocks of one length without dropping a token, and collate them into batches."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from modeling_alibi_gpt.chunked_loss import IGNORED_LABEL
from modeling_alibi_gpt.data.dataset_cache import cached_dataset
from modeling_alibi_gpt.data.documents import document_rows, num_bytes_of_rows, record_batches
from modeling_alibi_gpt.data.tokenization import token_rows, tokenization_key


BLOCKS_PER_READ = 1024
PACKING_VERSION = 1  # part of every cache key; increment it when the same inputs give different blocks


def pack_documents(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    length_tokens: int,
    *,
    isolate_documents: bool = False,
    max_tokens: int | None = None,
    num_proc: int = 1,
) -> Dataset:
    """Pack the tokens of the documents, in order, into blocks of ``length_tokens``: a dataset cached on disk.

    No token is dropped: the last block holds the remainder. If the remainder is a single token, which has nothing to
    predict, the block before it gives it one of its own.

    Args:
        documents: Rows with a ``text``.
        tokenizer: Fast tokenizer with an eos token, which ends every document.
        length_tokens: Tokens per block.
        isolate_documents: Add ``position_ids`` that restart at 0 in every block and document. Without an attention
            mask, Transformers then restricts attention to each document.
        max_tokens: Use only the first ``max_tokens`` tokens, and encode little more than those.
        num_proc: Number of processes that encode; does not change the tokens.

    Raises:
        ValueError: ``length_tokens`` is below 3 (every block needs a token to predict), or the documents or
            ``max_tokens`` do not fill one block.
    """
    if length_tokens < 3:
        raise ValueError(f"length_tokens must be at least 3, got {length_tokens}")
    if max_tokens is not None and max_tokens < length_tokens:
        raise ValueError(f"max_tokens must be at least length_tokens ({length_tokens}), got {max_tokens}")

    def generate() -> Iterator[dict[str, np.ndarray]]:
        rows = _with_progress(documents)
        tokens = first_tokens(token_rows(rows, tokenizer, num_proc=num_proc), max_tokens)
        return packed_blocks(tokens, length_tokens, isolate_documents=isolate_documents)

    key = (*tokenization_key(documents, tokenizer), length_tokens, isolate_documents, max_tokens, PACKING_VERSION)
    blocks = cached_dataset(generate, block_features(isolate_documents=isolate_documents), Hasher.hash(key))
    num_tokens = sum(len(ids) for ids in blocks[:2]["input_ids"])
    if num_tokens < length_tokens:
        wanted = f"at least {length_tokens} tokens (length_tokens)"
        raise ValueError(f"the corpus is too small for one block: expected {wanted}, got {num_tokens}")
    return blocks


def block_features(*, isolate_documents: bool) -> Features:
    """Features of packed blocks: lists of int32."""
    columns = ["input_ids", "position_ids"] if isolate_documents else ["input_ids"]
    return Features({column: List(Value("int32")) for column in columns})


def blocks_fingerprint(blocks: Dataset) -> str:
    """The first 16 hex digits of a SHA-256 over all columns of packed blocks: exactly what training reads."""
    digest = hashlib.sha256()
    for rows in record_batches(blocks, rows_per_read=BLOCKS_PER_READ):  # the digest depends on this number
        for column in rows.combine_chunks().columns:
            for chunk in column.chunks:
                lengths, tokens = chunk.value_lengths(), chunk.flatten()
                digest.update(lengths.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
                digest.update(tokens.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def count_tokens(blocks: Dataset) -> int:
    """Number of tokens in packed blocks, all of which but the last two have the same length."""
    ends = [len(ids) for ids in blocks[max(0, len(blocks) - 2) :]["input_ids"]]
    return (len(blocks) - len(ends)) * len(blocks[0]["input_ids"]) + sum(ends)


def packed_blocks(
    tokens: Iterable[tuple[np.ndarray, bool]], length_tokens: int, *, isolate_documents: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Pack parts of documents, as given by ``token_rows``, into blocks; the last block holds the remainder."""
    rest = np.empty((2, 0), dtype=np.int32)  # ids, and 1 where a document starts
    for ids, is_first in tokens:
        is_start = np.zeros_like(ids)
        is_start[:1] = is_first
        rest = np.concatenate([rest, [ids, is_start]], axis=1)
        while rest.shape[1] > length_tokens + 1:  # leaves at least two tokens
            yield make_block(rest[:, :length_tokens], isolate_documents)
            rest = rest[:, length_tokens:]
    if rest.shape[1] == length_tokens + 1:
        yield make_block(rest[:, :-2], isolate_documents)
        rest = rest[:, -2:]
    if rest.shape[1]:
        yield make_block(rest, isolate_documents)


def first_tokens(
    tokens: Iterable[tuple[np.ndarray, bool]], max_tokens: int | None
) -> Iterator[tuple[np.ndarray, bool]]:
    """The first ``max_tokens`` tokens; nothing is read beyond them."""
    num_tokens = 0
    for ids, is_first in tokens:
        if max_tokens is not None:
            ids = ids[: max_tokens - num_tokens]
        yield ids, is_first
        num_tokens += len(ids)
        if num_tokens == max_tokens:
            return


def _with_progress(documents: Dataset) -> Iterator[tuple[int, str]]:
    """The rows of documents, with a progress bar in bytes of text."""
    total = sum(num_bytes_of_rows(documents))
    with tqdm(desc="Tokenizing", total=total, unit="B", unit_scale=True, disable=None) as progress:
        for number, text in document_rows(documents):
            yield number, text
            progress.update(len(text.encode()))


def make_block(tokens: np.ndarray, isolate_documents: bool) -> dict[str, np.ndarray]:
    """Make a block from ``(2, N)`` tokens: ids, and 1 where a document starts."""
    ids, is_start = tokens
    if not isolate_documents:
        return {"input_ids": ids}
    slots = np.arange(len(ids), dtype=np.int32)
    return {"input_ids": ids, "position_ids": slots - np.maximum.accumulate(slots * is_start)}


@dataclass(frozen=True)
class PackedCollator:
    """Collates packed blocks into a batch for ``transformers.Trainer``.

    Shorter blocks are padded on the right. There is no attention mask: a causal model needs none for right padding,
    and Transformers detects packed documents from ``position_ids`` only without one. Padding is one more document.

    Attributes:
        pad_token_id: Token that fills the shorter blocks.
    """

    pad_token_id: int

    def __call__(self, blocks: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``input_ids`` and ``labels``, and ``position_ids`` if the blocks have them; each ``(B, T)`` int64.

        Labels are -100 on padding and on the first token of each isolated document, which no earlier token may
        predict. Blocks with their own ``labels`` keep them.
        """
        input_ids = _pad(blocks, "input_ids", self.pad_token_id)
        lengths = torch.tensor([len(block["input_ids"]) for block in blocks])[:, None]  # (B, 1)
        slots = torch.arange(input_ids.shape[1])  # (T,)
        is_padding = slots >= lengths  # (B, T)
        batch = {"input_ids": input_ids, "labels": input_ids.masked_fill(is_padding, IGNORED_LABEL)}
        if "labels" in blocks[0]:
            batch["labels"] = _pad(blocks, "labels", IGNORED_LABEL)
        if "position_ids" in blocks[0]:
            positions = torch.where(is_padding, slots - lengths, _pad(blocks, "position_ids", 0))
            batch["position_ids"] = positions
            batch["labels"] = batch["labels"].masked_fill(positions == 0, IGNORED_LABEL)
        return batch


def _pad(blocks: list[dict[str, Any]], column: str, padding_value: int) -> Tensor:
    rows = [torch.as_tensor(block[column], dtype=torch.long) for block in blocks]
    return pad_sequence(rows, batch_first=True, padding_value=padding_value)
