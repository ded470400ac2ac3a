"""Cost of preparing a text for training: time, memory and disk.

To measure a corpus of a given size, a child process prepares one file that repeats the text up to that size. Its words
repeat more often than in a real corpus, so the time is a lower bound.
"""

import json
import multiprocessing
import os
import resource
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

from modeling_alibi_gpt.data.corpora import load_documents
from modeling_alibi_gpt.data.documents import describe_documents, document_rows, pieces_of_row
from modeling_alibi_gpt.data.encoder import Encoder
from modeling_alibi_gpt.data.packing import count_tokens, pack_documents
from modeling_alibi_gpt.data.tokenization import token_rows
from modeling_alibi_gpt.data.tokenizer_files import load_tokenizer
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer
from modeling_alibi_gpt.runtime.records import Record, provenance


NUM_ROUNDS = 3
TEXTS_PER_CALL = 16


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


def measure_preparation(source: str, tokenizer_name: str | None, num_bytes: int) -> Record:
    """Read, hash, encode and pack a text of a given size in a child process, and return a record of the cost.

    Args:
        source: Source of the text, which is repeated up to that size as one file.
        tokenizer_name: Name or folder of the tokenizer; None first trains a BPE of 2,048 tokens.
        num_bytes: Size of the text.
    """
    texts = [text for _, text in document_rows(load_documents(source, "all"))]
    with tempfile.TemporaryDirectory(prefix="alibi-gpt-data-") as folder:
        path, written = Path(folder, "text.txt"), 0
        with path.open("w", encoding="utf-8") as file:
            for text in cycle(texts):
                if written >= num_bytes:
                    break
                written += file.write(text)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result = json.loads(pool.apply(_prepare, (str(path), tokenizer_name, folder)))
    step = "prepare" if tokenizer_name else "train a BPE and prepare"
    return {
        "kind": "data_speed",
        "contestant": "alibi_gpt",
        "step": step,
        **result,
        "provenance": {**provenance(), "source": source},
    }


def _prepare(path: str, tokenizer_name: str | None, folder: str) -> str:
    datasets.config.HF_DATASETS_CACHE = str(Path(folder, "cache"))
    before, started = time.process_time(), time.perf_counter()
    memory_before = psutil.Process().memory_info().rss
    documents = load_documents(f"text:{path}", "all")
    if tokenizer_name is None:
        tokenizer = train_tokenizer(documents, 2048, sample_bytes=100_000_000)
    else:
        tokenizer = load_tokenizer(tokenizer_name)
    blocks = pack_documents(documents, tokenizer, 512)
    cached = [file for file in Path(folder, "cache").rglob("*") if file.is_file()]
    figures = {
        "num_bytes": describe_documents(documents)["num_bytes"],
        "num_tokens": count_tokens(blocks),
        "cpu_seconds": [time.process_time() - before],
        "wall_seconds": time.perf_counter() - started,
        "memory_before_bytes": memory_before,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
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
