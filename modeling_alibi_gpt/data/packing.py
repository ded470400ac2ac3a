"""From tokenised documents to batches: packed into blocks of one length with nothing dropped, then collated."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modeling_alibi_gpt.data.dataset_cache import cached_dataset


IGNORED_LABEL = -100
DOCUMENTS_PER_READ = 64
BLOCKS_PER_READ = 1024
PACKING_VERSION = 1  # part of every cache key: raise it when the same inputs give other blocks


def pack_documents(
    tokenized: Dataset, length_tokens: int, *, isolate_documents: bool = False, max_tokens: int | None = None
) -> Dataset:
    """Blocks of ``length_tokens`` cut from the documents joined in order, as a dataset that is cached on disk.

    Nothing is dropped: the last block holds what is left. Where that would be one lone token, which predicts nothing,
    the block before gives it another one.

    Args:
        tokenized: Rows with the ``input_ids`` of a document, eos included.
        length_tokens: Tokens of a block.
        isolate_documents: Adds ``position_ids``, which start at 0 with every block and every document in it: without
            an attention mask Transformers then keeps attention inside each document.
        max_tokens: Uses the first so many tokens only.

    Raises:
        ValueError: ``length_tokens`` is below 3 (every block must hold something to predict), or the documents or
            ``max_tokens`` do not fill one block.
    """
    if length_tokens < 3:
        raise ValueError(f"length_tokens must be at least 3, got {length_tokens}")
    if max_tokens is not None and max_tokens < length_tokens:
        raise ValueError(f"max_tokens must be at least length_tokens ({length_tokens}), got {max_tokens}")
    columns = ["input_ids", "position_ids"] if isolate_documents else ["input_ids"]
    blocks = cached_dataset(
        partial(_blocks, tokenized, length_tokens, isolate_documents, max_tokens),
        Features({column: List(Value("int32")) for column in columns}),
        Hasher.hash((tokenized._fingerprint, length_tokens, isolate_documents, max_tokens, PACKING_VERSION)),
    )
    num_tokens = sum(len(ids) for ids in blocks[:2]["input_ids"])
    if num_tokens < length_tokens:
        raise ValueError(
            f"the corpus is too small for its context: expected at least {length_tokens} tokens (length_tokens), "
            f"got {num_tokens}"
        )
    return blocks


def blocks_fingerprint(blocks: Dataset) -> str:
    """The first 16 hex digits of a sha256 over all columns of packed blocks: what a training really reads."""
    digest = hashlib.sha256()
    for rows in blocks.with_format("arrow").iter(batch_size=BLOCKS_PER_READ):
        for column in rows.combine_chunks().columns:
            for chunk in column.chunks:
                lengths, tokens = chunk.value_lengths(), chunk.flatten()
                digest.update(lengths.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
                digest.update(tokens.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _blocks(
    tokenized: Dataset, length_tokens: int, isolate_documents: bool, max_tokens: int | None
) -> Iterator[dict[str, np.ndarray]]:
    rest = np.empty((2, 0), dtype=np.int32)  # ids, and 1 where a document starts
    for ids in _documents(tokenized, max_tokens):
        is_start = np.zeros_like(ids)
        is_start[:1] = 1
        rest = np.concatenate([rest, [ids, is_start]], axis=1)
        while rest.shape[1] > length_tokens + 1:  # so that two tokens at least remain
            yield _block(rest[:, :length_tokens], isolate_documents)
            rest = rest[:, length_tokens:]
    if rest.shape[1] == length_tokens + 1:
        yield _block(rest[:, :-2], isolate_documents)
        rest = rest[:, -2:]
    if rest.shape[1]:
        yield _block(rest, isolate_documents)


def _documents(tokenized: Dataset, max_tokens: int | None) -> Iterator[np.ndarray]:
    num_tokens = 0
    for rows in tokenized.with_format("arrow").iter(batch_size=DOCUMENTS_PER_READ):
        for row in rows["input_ids"]:
            ids = row.values.to_numpy()
            if max_tokens is not None:
                ids = ids[: max_tokens - num_tokens]
            yield ids
            num_tokens += len(ids)
            if num_tokens == max_tokens:
                return


def _block(tokens: np.ndarray, isolate_documents: bool) -> dict[str, np.ndarray]:
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
