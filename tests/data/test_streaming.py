"""Streams: every token once and in order, the same training after a kill and on one process or two."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from modeling_alibi_gpt.data import documents as documents_module
from modeling_alibi_gpt.data import streaming
from modeling_alibi_gpt.data.streaming import StreamedBlocks, stream_documents
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer
from modeling_alibi_gpt.experiments import compare
from modeling_alibi_gpt.runtime.records import read_records
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.prepared_data import training_documents
from modeling_alibi_gpt.training.trainer import train
from tests.support.train_commands import exit_code, start_training
from tests.training.test_distributed import NO_DROPOUT, exit_codes, losses, start_two, weights


LENGTH = 16


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Six documents, as files of text, of JSON Lines and of Parquet."""
    found = ["\n".join(f"line {k} of {number}" for k in range(3 + 30 * number)) for number in range(6)]
    for number, text in enumerate(found):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    rows = Dataset.from_dict({"body": found, "stars": list(range(6))})
    rows.to_json(tmp_path / "rows.jsonl")
    rows.to_parquet(tmp_path / "rows.parquet")
    return found


@pytest.fixture
def tokenizer(texts: list[str]) -> Any:
    return train_tokenizer(Dataset.from_dict({"text": texts}), 280)


SOURCES = ["text:{}/*.txt", "jsonl:{}/rows.jsonl", "parquet:{}/rows.parquet"]


def stream(source: str, tmp_path: Path, tokenizer: Any, **settings: Any) -> StreamedBlocks:
    documents = stream_documents(source.format(tmp_path), text_column="body")
    return StreamedBlocks(documents, tokenizer, LENGTH, **settings)


def take(blocks: StreamedBlocks, number: int) -> list[list[int]]:
    iterator = iter(blocks)
    return [next(iterator)["input_ids"].tolist() for _ in range(number)]


@pytest.mark.parametrize("source", SOURCES)
def test_a_stream_is_the_documents_with_their_ends_over_and_over(
    source: str, texts: list[str], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 40)
    monkeypatch.setattr(streaming, "STREAM_ROW_CHARACTERS", 100)
    one_pass = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    num_blocks = 5 * len(one_pass) // (2 * LENGTH)
    found = np.concatenate(take(stream(source, tmp_path, tokenizer), num_blocks)).tolist()
    assert found == (3 * one_pass)[: len(found)] and len(found) > 2 * len(one_pass)


def test_documents_are_isolated_in_a_stream_too(texts: list[str], tokenizer: Any, tmp_path: Path) -> None:
    iterator = iter(stream(SOURCES[0], tmp_path, tokenizer, isolate_documents=True))
    for _ in range(100):
        block = next(iterator)
        ends = np.flatnonzero(block["input_ids"] == tokenizer.eos_token_id)
        assert np.flatnonzero(block["position_ids"] == 0).tolist() == sorted({0, *(ends[ends < LENGTH - 1] + 1)})


@pytest.mark.parametrize("num_shuffled", [1, 4])  # of the rows of one reader, fewer and more
@pytest.mark.parametrize("num_streams", [1, 2, 4])  # six files divide among two, and not among four
@pytest.mark.parametrize("source", SOURCES)
def test_a_stream_goes_on_where_it_was_saved(
    source: str,
    num_streams: int,
    num_shuffled: int,
    texts: list[str],
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 40)
    monkeypatch.setattr(streaming, "STREAM_ROW_CHARACTERS", 100)
    settings = {"num_streams": num_streams, "num_shuffled_documents": num_shuffled}
    whole = take(stream(source, tmp_path, tokenizer, **settings), 64 * num_streams)
    for num_steps in range(0, 60, 7):
        first = stream(source, tmp_path, tokenizer, **settings)
        take(first, num_steps * num_streams)
        first.save(tmp_path, num_steps)
        second = stream(source, tmp_path, tokenizer, **settings)
        second.load(tmp_path)
        second.save(tmp_path, num_steps)  # killed again before its first step
        second.load(tmp_path)
        assert take(second, 4 * num_streams) == whole[num_steps * num_streams :][: 4 * num_streams], num_steps
        second.save(tmp_path, num_steps + 4)


@pytest.mark.parametrize("source", SOURCES)
def test_a_shuffled_pass_has_every_document_once_in_an_order_of_its_own(
    source: str, texts: list[str], tokenizer: Any, tmp_path: Path
) -> None:
    documents = [tuple(tokenizer(text)["input_ids"]) for text in texts]
    num_tokens = 4 * sum(len(ids) + 1 for ids in documents)
    blocks = stream(source, tmp_path, tokenizer, num_shuffled_documents=4)
    tokens = np.concatenate(take(blocks, num_tokens // LENGTH))
    ends = np.flatnonzero(tokens == tokenizer.eos_token_id)
    found = [documents.index(tuple(part[part != tokenizer.eos_token_id])) for part in np.split(tokens, ends)[:-1]]
    passes = [found[start : start + 6] for start in range(0, 18, 6)]
    for order in passes:
        assert (sorted(order[:4]), sorted(order[4:])) == ([0, 1, 2, 3], [4, 5])
    assert len({*map(tuple, passes), tuple(range(6))}) == 4


def test_processes_share_the_readers(texts: list[str], tokenizer: Any, tmp_path: Path) -> None:
    whole = stream(SOURCES[0], tmp_path, tokenizer, num_streams=2)
    halves = [stream(SOURCES[0], tmp_path, tokenizer, num_streams=2, rank=rank, num_processes=2) for rank in (0, 1)]
    for blocks in (whole, *halves):
        blocks.set_global_batch_size(4)
    steps = np.array(take(whole, 40)).reshape(10, 2, 2, LENGTH)
    for rank, half in enumerate(halves):
        assert np.array_equal(np.array(take(half, 20)).reshape(10, 2, LENGTH), steps[:, rank])
    with pytest.raises(ValueError, match=r"num_streams \(3\) must be a multiple of the number of processes \(2\)"):
        stream(SOURCES[0], tmp_path, tokenizer, num_streams=3, num_processes=2)
    with pytest.raises(ValueError, match=r"global_batch_size \(3\) must be a multiple of data.num_streams \(2\)"):
        whole.set_global_batch_size(3)


def test_a_stream_without_text_or_column_is_refused(tmp_path: Path, texts: list[str], tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no text column 'text': its columns are body, stars"):
        next(iter(stream_documents(f"jsonl:{tmp_path}/rows.jsonl")))
    with pytest.raises(ValueError, match="a stream has no documents: expected at least data.num_streams"):
        take(stream(SOURCES[0], tmp_path, tokenizer, num_streams=12), 24)


# Trainings


@pytest.fixture
def streamed(make_experiment: Callable[..., ExperimentConfig], corpus: Path, tmp_path: Path) -> list[str]:
    """Settings that make the tiny experiment read its text as a stream of two readers."""
    lines = "".join((corpus / f"{number}.txt").read_text() for number in range(6))
    train_tokenizer(Dataset.from_dict({"text": [lines]}), 270).save_pretrained(tmp_path / "tokenizer")
    return [
        "data.streaming=true",
        "data.num_streams=2",
        "data.max_train_tokens=null",
        f"data.source=text:{corpus}/[0-4].txt",
        f"data.validation_source=text:{corpus}/5.txt",
        f"data.tokenizer={tmp_path}/tokenizer",
        "data.num_shuffled_documents=2",
        "training.logging_steps=1",
    ]


@pytest.mark.parametrize("killed_at", ["os.mkdir checkpoint-8", "open checkpoint-8/.stream-0.json.*"])
def test_a_killed_streaming_training_ends_with_the_same_bits(
    experiment_file: Path, streamed: list[str], killed_at: str
) -> None:
    folder = experiment_file.parent
    straight = start_training(experiment_file, *streamed, f"training.output_dir={folder / 'straight'}")
    assert exit_code(straight) == 0
    assert exit_code(start_training(experiment_file, *streamed, killed_at=killed_at)) == -signal.SIGKILL
    assert exit_code(start_training(experiment_file, *streamed)) == 0
    assert read_records(folder / "run" / "training.jsonl")[0]["resumed_from"] == "checkpoint-4"
    assert weights(folder / "run") == weights(folder / "straight")
    assert losses(folder / "run") == losses(folder / "straight")
    files = json.loads((folder / "run" / "checkpoint-10" / "manifest.json").read_text())["files"]
    assert {"stream-0.json", "stream-1.json"} < set(files)


def test_two_processes_that_are_killed_stream_what_one_does(experiment_file: Path, streamed: list[str]) -> None:
    folder = experiment_file.parent
    settings = (*streamed, *NO_DROPOUT)
    halves = (f"training.output_dir={folder / 'halves'}", "training.gradient_accumulation_steps=2")
    assert exit_code(start_training(experiment_file, *settings, *halves)) == 0
    first, second = start_two(experiment_file, *settings, killed_at="os.mkdir checkpoint-8")
    assert exit_code(first) == -signal.SIGKILL
    second.kill()  # as a launcher does
    assert exit_code(second) != 0
    assert exit_codes(start_two(experiment_file, *settings)) == [0, 0]
    assert read_records(folder / "run" / "training.jsonl")[0]["resumed_from"] == "checkpoint-4"
    assert weights(folder / "run") == weights(folder / "halves")
    assert losses(folder / "run") == losses(folder / "halves")


def test_a_stream_lists_no_documents(make_experiment: Callable[..., ExperimentConfig], streamed: list[str]) -> None:
    data = make_experiment(*streamed).data
    assert compare._corpus_records("comparison", data) == []
    with pytest.raises(ValueError, match="the documents of a stream cannot be listed"):
        training_documents(data)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.source=stdlib", "needs one source of text:, jsonl:, parquet: or hub:"),
        ("data.validation_source=null", "needs a data.validation_source"),
        ("data.max_train_tokens=1000", "needs data.max_train_tokens null"),
        ("training.max_steps=-1", "needs training.max_steps"),
        ("training.dataloader_num_workers=1", "needs training.dataloader_num_workers 0"),
        ("precision=auto", "needs precision float32 or bfloat16"),
        ("data.tokenizer=train", "needs data.tokenizer"),
        ("data.streaming=false", "num_shuffled_documents applies to streams: expected data.streaming true"),
        ("data.num_streams=3", r"global_batch_size \(4\) must be a multiple of data.num_streams \(3\)"),
    ],
)
def test_what_cannot_be_streamed_is_refused(
    make_experiment: Callable[..., ExperimentConfig], streamed: list[str], setting: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(make_experiment(*streamed, setting))
