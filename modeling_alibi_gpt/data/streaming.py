"""Stream training text from its source: nothing is cached on disk, and a resumed run continues at the same row."""

import copy
import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from transformers import PreTrainedTokenizerFast

from modeling_alibi_gpt.data.documents import rows_of_text
from modeling_alibi_gpt.data.encoder import Encoder
from modeling_alibi_gpt.data.packing import make_block
from modeling_alibi_gpt.data.row_datasets import row_source
from modeling_alibi_gpt.data.text_files import matching_files, read_chunks, relative_names, text_paths
from modeling_alibi_gpt.runtime.atomic import write_json
from modeling_alibi_gpt.runtime.parsing import read_mapping


STREAM_ROW_CHARACTERS = 250_000


def stream_documents(source: str, *, train_split: str = "train", text_column: str = "text") -> IterableDataset:
    """Stream the documents of a source, with the columns ``name``, ``part`` and ``text``.

    A long document of a ``text:`` source spans several rows with the same name, and ``part`` counts them from 0.

    Args:
        source: ``text:GLOB``, ``jsonl:GLOB``, ``parquet:GLOB`` or ``hub:NAME[:CONFIG][@REVISION]``.
        train_split: Split of a ``hub:`` source; ``datasets`` cannot stream expressions such as ``train[:1%]``.
        text_column: Column of a row source that holds the text.

    Raises:
        ValueError: The source cannot be read or has no such split.
    """
    kind, _, location = source.partition(":")
    if kind == "text":
        paths = text_paths(location)
        files = list(zip(map(str, paths), relative_names(paths), strict=True))
        return IterableDataset.from_generator(_rows_of_files, gen_kwargs={"files": files})
    rows = row_source(source).load(train_split, streaming=True)
    return rows.map(
        _row,
        with_indices=True,
        fn_kwargs={"text_column": text_column, "source": source},
        remove_columns=rows.column_names,
    )


def stream_fingerprint(source: str, train_split: str) -> str:
    """Fingerprint of a source that is not read yet: names and sizes of its files, or the dataset and its revision."""
    kind, _, location = source.partition(":")
    if kind == "hub":
        known: Any = [source, train_split]
    else:
        paths = matching_files(location)
        sizes = [path.stat().st_size for path in paths]
        known = list(zip(relative_names(paths), sizes, strict=True))
    return f"stream-{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]}"


def _rows_of_files(files: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    for path, name in files:
        for part, text in enumerate(rows_of_text(read_chunks(Path(path)), STREAM_ROW_CHARACTERS)):
            yield {"name": name, "part": part, "text": text}


def _row(row: dict[str, Any], index: int, text_column: str, source: str) -> dict[str, Any]:
    text = row.get(text_column)
    if text is not None and not isinstance(text, str) or text_column not in row:
        raise ValueError(f"{source} has no text column {text_column!r}: its columns are {', '.join(row)}")
    return {"name": str(index), "part": 0, "text": text or ""}


class StreamedBlocks(torch.utils.data.IterableDataset):
    """Endless packed blocks from several readers, each of which reads its own share of the documents.

    Every optimizer step takes the same number of consecutive blocks from each reader. It does not matter which
    process runs which reader, so training is the same on any number of processes that divides ``num_streams``. A
    reader that reaches the end of its share starts over.

    Args:
        documents: As returned by ``stream_documents``.
        tokenizer: Fast tokenizer with an eos token.
        length_tokens: Tokens per block.
        isolate_documents: As in ``pack_documents``.
        num_streams: Number of readers, over all processes.
        num_shuffled_documents: Number of rows that a reader buffers and shuffles at a time.
        rank: Rank of this process.
        num_processes: Number of processes.

    Raises:
        ValueError: ``num_streams`` is not a multiple of ``num_processes``.
    """

    def __init__(
        self,
        documents: IterableDataset,
        tokenizer: PreTrainedTokenizerFast,
        length_tokens: int,
        *,
        isolate_documents: bool = False,
        num_streams: int = 1,
        num_shuffled_documents: int = 1,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        if num_streams % num_processes:
            raise ValueError(
                f"data.num_streams ({num_streams}) must be a multiple of the number of processes ({num_processes})"
            )
        share = num_streams // num_processes
        self.num_streams = num_streams
        self.blocks_per_stream = 1
        self.readers = {
            number: _Reader(
                split_dataset_by_node(copy.deepcopy(documents), number, num_streams),
                tokenizer,
                length_tokens,
                isolate_documents,
                number,
                num_shuffled_documents,
            )
            for number in range(rank * share, (rank + 1) * share)
        }

    def set_global_batch_size(self, num_blocks: int) -> None:
        """Set how many blocks an optimizer step takes, over all processes.

        Raises:
            ValueError: ``num_blocks`` is not a multiple of ``num_streams``.
        """
        if num_blocks % self.num_streams:
            raise ValueError(
                f"global_batch_size ({num_blocks}) must be a multiple of data.num_streams ({self.num_streams})"
            )
        self.blocks_per_stream = num_blocks // self.num_streams

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        blocks_of = [reader.blocks() for reader in self.readers.values()]
        while True:
            for blocks in blocks_of:
                for _ in range(self.blocks_per_stream):
                    yield next(blocks)

    def save(self, folder: Path, num_steps: int) -> None:
        """Write the positions of this process's readers after ``num_steps`` steps into a checkpoint folder.

        Raises:
            RuntimeError: A reader has given more or fewer blocks than ``num_steps`` steps take.
        """
        for number, reader in self.readers.items():
            if reader.num_blocks != num_steps * self.blocks_per_stream:
                raise RuntimeError(
                    f"reader {number} gave {reader.num_blocks} blocks in {num_steps} steps, expected "
                    f"{num_steps * self.blocks_per_stream}"
                )
            write_json(folder / _state_file(number), reader.state_dict())

    def load(self, folder: Path) -> None:
        """Resume from the positions that ``save`` wrote, with any number of processes."""
        for number, reader in self.readers.items():
            reader.load_state_dict(read_mapping(folder / _state_file(number)))


def _state_file(number: int) -> str:
    return f"stream-{number}.json"


class _Reader:
    """Endless blocks from one share of the documents.

    The state describes the start of the current row: the position in the documents, the tokens left over from earlier
    rows, and the number of blocks given since. A resumed reader encodes the current row again and skips those blocks.
    Rows are shuffled in groups. The order within a group follows from the numbers of the reader, of the pass and of
    the group, so a resumed reader reads its group again. ``IterableDataset.shuffle`` would lose the group, since its
    buffer is not part of ``state_dict``.
    """

    def __init__(
        self,
        documents: IterableDataset,
        tokenizer: PreTrainedTokenizerFast,
        length_tokens: int,
        isolate_documents: bool,
        number: int,
        num_shuffled: int,
    ) -> None:
        self.number, self.num_shuffled = number, num_shuffled
        self.documents, self.encoder, self.eos = documents, Encoder(tokenizer), tokenizer.eos_token_id
        self.length_tokens, self.isolate_documents = length_tokens, isolate_documents
        self.num_blocks = 0
        self._begin = {"documents": None, "place": [0, 0, 0], "last": None, "rest": [[], []], "num_blocks": 0}

    def state_dict(self) -> dict[str, Any]:
        return {**self._begin, "num_blocks": self.num_blocks, "num_blocks_before_row": self._begin["num_blocks"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_blocks = state["num_blocks"]
        self._begin = {**state, "num_blocks": state["num_blocks_before_row"]}

    def blocks(self) -> Iterator[dict[str, np.ndarray]]:
        """The blocks after those that were given before the loaded ``state_dict``."""
        num_given, self.num_blocks = self.num_blocks, self._begin["num_blocks"]
        last, rest = self._begin["last"], np.array(self._begin["rest"], dtype=np.int32)
        for row, state_before, place in self._rows(self._begin["documents"], self._begin["place"]):
            self._begin = {
                "documents": state_before,
                "place": place,
                "last": last,
                "rest": rest.tolist(),
                "num_blocks": self.num_blocks,
            }
            rest = np.concatenate([rest, self._tokens(row, last)], axis=1)
            last = [row["name"], row["part"]]
            while rest.shape[1] >= self.length_tokens:
                block = make_block(rest[:, : self.length_tokens], self.isolate_documents)
                rest = rest[:, self.length_tokens :]
                self.num_blocks += 1
                if self.num_blocks > num_given:
                    yield block

    def _rows(
        self, state: dict[str, Any] | None, place: list[int]
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None, list[int]]]:
        """Endless rows, each with the state before its shuffled group and its place.

        A state of None is the start of the documents. The place gives the numbers of the pass, of the group within it
        and of the row within the group.
        """
        num_pass, group, first = place
        while True:
            is_whole_pass, is_empty = state is None and not first, True
            documents = copy.deepcopy(self.documents)  # a dataset that has been read keeps its position
            if state is not None:
                documents.load_state_dict(state)
            rows = iter(documents)
            while held := list(islice(rows, self.num_shuffled)):
                state_after = documents.state_dict()
                order = np.random.default_rng([self.number, num_pass, group]).permutation(len(held))
                for index in range(first, len(held)):
                    row = held[order[index]]
                    if row["text"].strip():
                        is_empty = False
                        yield row, state, [num_pass, group, index]
                state, group, first = state_after, group + 1, 0
            if is_empty and is_whole_pass:
                raise ValueError(
                    "a stream has no documents: expected at least data.num_streams files, rows or parts of a text"
                )
            state, num_pass, group = None, num_pass + 1, 0

    def _tokens(self, row: dict[str, Any], last: list[Any] | None) -> np.ndarray:
        """``(2, N)``: ids, and 1 where a document starts. A new document is preceded by the eos of the last one."""
        [ids] = self.encoder.ids([row["text"]])
        is_first = last is None or last != [row["name"], row["part"] - 1]
        is_start = np.zeros_like(ids)
        is_start[:1] = is_first
        tokens = np.stack([ids, is_start])
        if is_first and last is not None:
            tokens = np.concatenate([np.array([[self.eos], [0]], dtype=np.int32), tokens], axis=1)
        return tokens
