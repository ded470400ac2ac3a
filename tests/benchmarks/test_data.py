"""The figures of preparing text are of all of it, and their records are whole."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from benchmarks import data
from benchmarks.data import measure_encoding, measure_preparation
from modeling_alibi_gpt.data.corpora import load_documents
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer
from modeling_alibi_gpt.runtime.records import check_record


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    (tmp_path / "a.txt").write_text("a line of words\n" * 500, encoding="utf-8")
    return f"text:{tmp_path}/a.txt"


def test_every_way_to_encode_gives_as_many_tokens(source: str, tmp_path: Path) -> None:
    tokenizer: Any = train_tokenizer(load_documents(source, "all"), 270)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    records = list(measure_encoding(source, str(tmp_path / "tokenizer"), num_rounds=2))
    assert [record["contestant"] for record in records] == ["transformers", "tokenizers", "alibi_gpt"]
    num_tokens = len(tokenizer("a line of words\n" * 500)["input_ids"])
    for record in records:
        check_record(record)
        assert (record["num_bytes"], record["num_tokens"]) == (8000, num_tokens)
        assert len(record["cpu_seconds"]) == 2


def test_a_preparation_is_measured_in_a_process_of_its_own(source: str) -> None:
    [record] = measure_preparation(source, None, 20_000)
    check_record(record)
    assert record["num_bytes"] == record["file_bytes"] == 2 * (5002 + 3002) + 5002, "whole rows up to the size"
    assert record["peak_memory_bytes"] > record["memory_before_bytes"] > 0
    assert record["peak_memory_bytes"] > record["peak_anonymous_bytes"] > 0
    assert record["disk_bytes"] > record["num_bytes"] + 4 * record["num_tokens"], "the text and its tokens"


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_the_first_tokens_are_prepared_with_and_without_the_rest(
    source: str, file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "MIN_BYTES", 20_000)
    monkeypatch.setattr(data, "BYTES_PER_TOKEN", 1)
    records = list(measure_preparation(source, None, 200_000, file_format=file_format, max_tokens=2000))
    assert [record["contestant"] for record in records] == ["reading all", "alibi_gpt"]
    for record in records:
        check_record(record)
        assert (record["num_tokens"], record["max_train_tokens"]) == (2000, 2000)
    assert records[0]["num_bytes"] >= 200_000 and 20_000 <= records[1]["num_bytes"] < 30_000
