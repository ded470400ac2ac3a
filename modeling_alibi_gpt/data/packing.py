"""From documents to batches: cut into tokens, packed into blocks of one length with nothing dropped, collated."""

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

from modeling_alibi_gpt.data.dataset_cache import cached_dataset
from modeling_alibi_gpt.data.documents import document_rows, num_bytes_of_rows, record_batches
from modeling_alibi_gpt.data.tokenization import token_rows, tokenization_key


IGNORED_LABEL = -100
BLOCKS_PER_READ = 1024
PACKING_VERSION = 1  # part of every cache key: raise it when the same inputs give other blocks


def pack_documents(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    length_tokens: int,
    *,
    isolate_documents: bool = False,
    max_tokens: int | None = None,
    num_proc: int = 1,
) -> Dataset:
    """Blocks of ``length_tokens`` cut from the tokens of the documents in order, as a dataset that is cached on disk.

    Nothing is dropped: the last block holds what is left. Where that would be one lone token, which predicts nothing,
    the block before gives it another one.

    Args:
        documents: Rows with a ``text``.
        tokenizer: Fast tokenizer with an eos token, which ends every document.
        length_tokens: Tokens of a block.
        isolate_documents: Adds ``position_ids``, which start at 0 with every block and every document in it: without
            an attention mask Transformers then keeps attention inside each document.
        max_tokens: Uses the first so many tokens only, and encodes little more.
        num_proc: Processes that encode, which changes no token.

    Raises:
        ValueError: ``length_tokens`` is below 3 (every block must hold something to predict), or the documents or
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

    key = tokenization_key(documents, tokenizer)
    key = Hasher.hash(key if max_tokens is None else (*key, max_tokens))  # of tokens that earlier versions kept, too
    blocks = cached_dataset(
        generate,
        block_features(isolate_documents=isolate_documents),
        Hasher.hash((key, length_tokens, isolate_documents, max_tokens, PACKING_VERSION)),
    )
    num_tokens = sum(len(ids) for ids in blocks[:2]["input_ids"])
    if num_tokens < length_tokens:
        wanted = f"at least {length_tokens} tokens (length_tokens)"
        raise ValueError(f"the corpus is too small for its context: expected {wanted}, got {num_tokens}")
    return blocks


def block_features(*, isolate_documents: bool) -> Features:
    """Columns of packed blocks."""
    columns = ["input_ids", "position_ids"] if isolate_documents else ["input_ids"]
    return Features({column: List(Value("int32")) for column in columns})


def blocks_fingerprint(blocks: Dataset) -> str:
    """The first 16 hex digits of a sha256 over all columns of packed blocks: what a training really reads."""
    digest = hashlib.sha256()
    for rows in record_batches(blocks, rows_per_read=BLOCKS_PER_READ):  # which the digest depends on
        for column in rows.combine_chunks().columns:
            for chunk in column.chunks:
                lengths, tokens = chunk.value_lengths(), chunk.flatten()
                digest.update(lengths.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
                digest.update(tokens.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def count_tokens(blocks: Dataset) -> int:
    """Tokens of packed blocks, all of one length but for the last two."""
    ends = [len(ids) for ids in blocks[max(0, len(blocks) - 2) :]["input_ids"]]
    return (len(blocks) - len(ends)) * len(blocks[0]["input_ids"]) + sum(ends)


def packed_blocks(
    tokens: Iterable[tuple[np.ndarray, bool]], length_tokens: int, *, isolate_documents: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Blocks of ``length_tokens`` from parts of documents, as of ``token_rows``; the last holds what is left."""
    rest = np.empty((2, 0), dtype=np.int32)  # ids, and 1 where a document starts
    for ids, is_first in tokens:
        is_start = np.zeros_like(ids)
        is_start[:1] = is_first
        rest = np.concatenate([rest, [ids, is_start]], axis=1)
        while rest.shape[1] > length_tokens + 1:  # so that two tokens at least remain
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
    """The first so many tokens; nothing is read beyond them."""
    num_tokens = 0
    for ids, is_first in tokens:
        if max_tokens is not None:
            ids = ids[: max_tokens - num_tokens]
        yield ids, is_first
        num_tokens += len(ids)
        if num_tokens == max_tokens:
            return


def _with_progress(documents: Dataset) -> Iterator[tuple[int, str]]:
    """The rows of documents, with a bar of the text that is read."""
    total = sum(num_bytes_of_rows(documents))
    with tqdm(desc="Tokenizing", total=total, unit="B", unit_scale=True, disable=None) as progress:
        for number, text in document_rows(documents):
            yield number, text
            progress.update(len(text.encode()))


def make_block(tokens: np.ndarray, isolate_documents: bool) -> dict[str, np.ndarray]:
    """A block from ``(2, N)``: ids, and 1 where a document starts."""
    ids, is_start = tokens
    if not isolate_documents:
        return {"input_ids": ids}
    slots = np.arange(len(ids), dtype=np.int32)
    return {"input_ids": ids, "position_ids": slots - np.maximum.accumulate(slots * is_start)}


@dataclass(frozen=True)
class PackedCollator:
    """Collates packed blocks into a batch for ``transformers.Trainer``.

    Shorter blocks are padded on the right. There is no attention mask: a causal model needs none there, and
    Transformers recognises packed documents by their ``position_ids`` only in its absence. Padding counts as one more
    document.

    Attributes:
        pad_token_id: Token that fills the shorter blocks.
    """

    pad_token_id: int

    def __call__(self, blocks: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``input_ids`` and ``labels`` ``(B, T)`` int64, and ``position_ids`` if the blocks have them.

        Labels are -100 on padding and, between isolated documents, on the first token of each, which nothing before
        it may predict; blocks that bring ``labels`` keep them.
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
