"""Cost of preparing a text for training: time, memory and disk.

To measure a corpus of a given size, a child process prepares one file that repeats the text up to that size. Its words
repeat more often than in a real corpus, so the time is a lower bound.
"""

import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import datasets
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.timing import PeakAnonymousMemory, status_bytes
from modeling_alibi_gpt.data.corpora import load_documents
from modeling_alibi_gpt.data.documents import describe_documents, document_rows, pieces_of_row
from modeling_alibi_gpt.data.encoder import Encoder
from modeling_alibi_gpt.data.packing import count_tokens, pack_documents
from modeling_alibi_gpt.data.tokenization import token_rows
from modeling_alibi_gpt.data.tokenizer_files import load_tokenizer
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer
from modeling_alibi_gpt.runtime.records import Record, provenance
from modeling_alibi_gpt.training.prepared_data import BYTES_PER_TOKEN, MIN_BYTES


NUM_ROUNDS = 3
TEXTS_PER_CALL = 16
ROW_CHARACTERS, ROWS_PER_GROUP = 5000, 1000


def measure_encoding(source: str, tokenizer_name: str, num_rounds: int = NUM_ROUNDS) -> Iterator[Record]:
    """Encode a text in three alternating ways, and yield their CPU seconds on one thread.

    Args:
        source: Source of the text, which is read in full.
        tokenizer_name: Name or folder of the tokenizer.
        num_rounds: Number of timed runs of each way.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer, documents = load_tokenizer(tokenizer_name), load_documents(source, "all")
    encoder = Encoder(tokenizer).backend

    def calls() -> Iterator[list[str]]:
        pieces = (text for _, row in document_rows(documents) for _, text in pieces_of_row(row))
        while call := list(islice(pieces, TEXTS_PER_CALL)):
            yield call

    def by_transformers() -> int:
        settings = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        return sum(len(ids) for call in calls() for ids in tokenizer(call, **settings)["input_ids"])

    def by_library() -> int:
        encoded = (encoder.encode_batch_fast(call, add_special_tokens=False) for call in calls())
        return sum(len(encoding.ids) for call in encoded for encoding in call)

    def by_package() -> int:
        num_ends = describe_documents(documents)["num_documents"]
        return sum(len(ids) for ids, _ in token_rows(document_rows(documents), tokenizer)) - num_ends

    ways: dict[str, Callable[[], int]] = {
        "transformers": by_transformers,
        "tokenizers": by_library,
        "alibi_gpt": by_package,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    num_tokens = set()
    for _ in range(num_rounds):
        for name, encode in ways.items():
            before = time.process_time()
            num_tokens.add(encode())
            seconds[name].append(time.process_time() - before)
    [number] = num_tokens  # fails unless all produce the same number of tokens
    for name, times in seconds.items():
        yield _record(name, "encode", documents, number, times, data_fingerprint=documents._fingerprint)


def measure_preparation(
    source: str,
    tokenizer_name: str | None,
    num_bytes: int,
    *,
    file_format: str = "text",
    max_tokens: int | None = None,
) -> Iterator[Record]:
    """Read, hash, encode and pack a text of a given size in a child process, and yield records of the cost.

    Args:
        source: Source of the text, which is repeated up to that size as one file.
        tokenizer_name: Name or folder of the tokenizer; None first trains a BPE of 2,048 tokens.
        num_bytes: Size of the text.
        file_format: Of the file: ``text``, ``jsonl`` or ``parquet``.
        max_tokens: Prepares the first so many tokens alone, twice: reading all of the text, and no more than needed.
    """
    texts = [text for _, text in document_rows(load_documents(source, "all"))]
    step = "prepare" if tokenizer_name else "train a BPE and prepare"
    ways = [None] if max_tokens is None else [None, max(MIN_BYTES, BYTES_PER_TOKEN * max_tokens)]
    with tempfile.TemporaryDirectory(prefix="alibi-gpt-data-") as folder:
        path = Path(folder, f"text.{file_format}")
        _WRITERS[file_format](path, _rows_up_to(texts, num_bytes))
        for max_bytes in ways:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                result = pool.apply(_prepare, (f"{file_format}:{path}", tokenizer_name, folder, max_tokens, max_bytes))
            yield {
                "kind": "data_speed",
                "contestant": "alibi_gpt" if max_bytes or max_tokens is None else "reading all",
                "step": step,
                "file_format": file_format,
                "file_bytes": path.stat().st_size,
                "max_train_tokens": max_tokens,
                **json.loads(result),
                "provenance": {**provenance(), "source": source},
            }


def _rows_up_to(texts: list[str], num_bytes: int) -> Iterator[str]:
    """Pieces of texts that repeat, with the number of the repetition in each, so that no two rows are equal."""
    written = 0
    for number, text in enumerate(cycle(texts)):
        for start in range(0, len(text), ROW_CHARACTERS):
            if written >= num_bytes:
                return
            row = f"{number // len(texts)} {text[start : start + ROW_CHARACTERS]}"
            written += len(row.encode())
            yield row


def _write_text(path: Path, rows: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(rows)


def _write_jsonl(path: Path, rows: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows)


def _write_parquet(path: Path, rows: Iterator[str]) -> None:
    with pq.ParquetWriter(path, pa.schema({"text": pa.string()})) as file:
        while group := list(islice(rows, ROWS_PER_GROUP)):
            file.write_table(pa.table({"text": group}))


_WRITERS = {"text": _write_text, "jsonl": _write_jsonl, "parquet": _write_parquet}


def _prepare(
    source: str, tokenizer_name: str | None, folder: str, max_tokens: int | None, max_bytes: int | None
) -> str:
    datasets.config.HF_DATASETS_CACHE = str(Path(folder, "cache"))
    before, started = time.process_time(), time.perf_counter()
    memory_before = psutil.Process().memory_info().rss
    with PeakAnonymousMemory() as anonymous:
        documents = load_documents(source, "all", max_bytes=max_bytes)
        if tokenizer_name is None:
            tokenizer = train_tokenizer(documents, 2048, sample_bytes=100_000_000)
        else:
            tokenizer = load_tokenizer(tokenizer_name)
        blocks = pack_documents(documents, tokenizer, 512, max_tokens=max_tokens)
    cached = [file for file in Path(folder, "cache").rglob("*") if file.is_file()]
    figures = {
        "num_bytes": describe_documents(documents)["num_bytes"],
        "num_tokens": count_tokens(blocks),
        "cpu_seconds": [time.process_time() - before],
        "wall_seconds": time.perf_counter() - started,
        "memory_before_bytes": memory_before,
        "peak_memory_bytes": status_bytes("VmHWM"),
        "peak_anonymous_bytes": anonymous.peak_bytes,
        "disk_bytes": sum(file.stat().st_size for file in cached),
    }
    shutil.rmtree(Path(folder, "cache"))
    return json.dumps(figures)


def _record(
    contestant: str, step: str, documents: Any, num_tokens: int, times: list[float], *, data_fingerprint: str
) -> Record:
    num_bytes = describe_documents(documents)["num_bytes"]
    return {
        "kind": "data_speed",
        "contestant": contestant,
        "step": step,
        "num_bytes": num_bytes,
        "num_tokens": num_tokens,
        "cpu_seconds": times,
        "megabytes_per_cpu_second": num_bytes / 1e6 / statistics.median(times),
        "provenance": provenance(data_fingerprint=data_fingerprint),
    }
