"""With ``max_train_tokens`` a long text is read no further than needed, and gives the tokens that all of it gives."""

import gzip
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from modeling_alibi_gpt.data import text_files
from modeling_alibi_gpt.data.corpora import describe_documents, load_documents
from modeling_alibi_gpt.data.packing import count_tokens, pack_documents
from modeling_alibi_gpt.training import prepared_data
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.prepared_data import prepare_data
from tests.support.experiments import corpus, experiment_file, make_experiment, one_thread, write_experiment  # noqa: F401


LINE = "Eine Zeile, ziemlich kurz — aus Wörtern.\n"
READ_BYTES = 1000


@pytest.fixture
def read_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, int]:
    """Bytes of text by the names of files, as they are read: in small chunks, into a cache of this test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))
    monkeypatch.setattr(text_files, "READ_BYTES", READ_BYTES)
    most: dict[str, int] = {}
    read_chunks = text_files.read_chunks

    def counted(path: Path):  # noqa: ANN202
        num_bytes = 0
        for chunk in read_chunks(path):
            num_bytes += len(chunk.encode())
            most[path.name] = max(most.get(path.name, 0), num_bytes)
            yield chunk

    monkeypatch.setattr(text_files, "read_chunks", counted)
    return most


def write(path: Path, num_lines: int) -> str:
    text = "".join(f"{number} {LINE}" for number in range(num_lines))
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return text


@pytest.mark.parametrize(("split", "name"), [("train", "a.txt"), ("all", "a.txt"), ("all", "a.txt.gz")])
def test_a_long_file_is_read_no_further(tmp_path: Path, read_paths: dict[str, int], split: str, name: str) -> None:
    text = write(tmp_path / name, 5000)
    write(tmp_path / "b.txt", 10)
    documents = load_documents(f"text:{tmp_path}/*.txt*", split, max_bytes=20_000)
    [read] = documents["text"]
    assert text.startswith(read) and read.endswith("\n")
    assert 20_000 <= len(read.encode()) < 20_000 + READ_BYTES + len(LINE.encode()) + 10
    assert read_paths[name] < 20_000 + 3 * READ_BYTES and "b.txt" not in read_paths


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("validation_fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("max_bytes", [2_000, 15_000, 40_000, 10**9])
def test_the_part_that_validates_is_never_trained_on(
    tmp_path: Path, read_paths: dict[str, int], name: str, validation_fraction: float, max_bytes: int
) -> None:
    write(tmp_path / name, 1000)
    source = f"text:{tmp_path / name}"
    whole = "".join(load_documents(source, "train", validation_fraction=validation_fraction)["text"])
    part = load_documents(source, "train", validation_fraction=validation_fraction, max_bytes=max_bytes)
    assert whole.startswith("".join(part["text"]))
    assert describe_documents(part)["num_bytes"] >= min(max_bytes, len(whole.encode()))


def test_what_is_read_decides_the_cache(tmp_path: Path, read_paths: dict[str, int]) -> None:
    """The text behind it may change; a change in it is seen even where size and time of the file are as before."""
    path = tmp_path / "a.txt"
    text = write(path, 5000)

    def fingerprint() -> str:
        return describe_documents(load_documents(f"text:{path}", "all", max_bytes=20_000))["fingerprint"]

    before = fingerprint()
    path.write_text(text + "more", encoding="utf-8")
    assert fingerprint() == before
    path.write_text(text.replace("100 Eine", "100 Kein"), encoding="utf-8")
    assert fingerprint() != before


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts of rows, also as files of JSON Lines and Parquet with row groups of 100, and as a folder for the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))
    texts = [f"{number} {LINE}" * 20 if number % 7 else " " for number in range(4000)]
    table = Dataset.from_dict({"body": texts})
    (tmp_path / "hub").mkdir()
    table.to_json(tmp_path / "rows.jsonl")
    table.to_parquet(tmp_path / "hub" / "train.parquet", batch_size=100)
    return texts


ROW_SOURCES = ["jsonl:{}/rows.jsonl", "parquet:{}/hub/train.parquet", "hub:{}/hub"]


@pytest.mark.parametrize("source", ROW_SOURCES)
@pytest.mark.parametrize(("split", "max_bytes"), [("all", 30_000), ("train", 30_000), ("train", 10**9)])
def test_the_first_rows_are_those_of_the_whole(
    source: str, split: str, max_bytes: int, rows: list[str], tmp_path: Path
) -> None:
    whole = load_documents(source.format(tmp_path), split, text_column="body")
    part = load_documents(source.format(tmp_path), split, text_column="body", max_bytes=max_bytes)
    assert part[:] == whole[: len(part)]
    if max_bytes == 10**9:
        assert len(part) == len(whole) and describe_documents(part) == describe_documents(whole)
    else:
        sizes = [len(text.encode()) for text in part["text"]]
        assert sum(sizes[:-1]) < max_bytes <= sum(sizes)


@pytest.mark.parametrize("source", ROW_SOURCES)
def test_rows_behind_are_neither_read_nor_kept(source: str, rows: list[str], tmp_path: Path) -> None:
    """JSON Lines are read in parts of 10 MB, Parquet in groups of rows: behind the first may be anything."""
    if source.startswith("jsonl"):
        path = tmp_path / "rows.jsonl"
        path.write_text(path.read_text(encoding="utf-8") * 5 + "no JSON", encoding="utf-8")
        assert path.stat().st_size > 1.5 * 10 * 2**20
    else:
        path = tmp_path / "hub" / "train.parquet"
        start = pq.read_metadata(path).row_group(39).column(0).data_page_offset
        data = bytearray(path.read_bytes())
        data[start : start + 200] = bytes(200)
        path.write_bytes(data)
    documents = load_documents(source.format(tmp_path), "all", text_column="body", max_bytes=30_000)
    assert documents["text"][:] == [text for text in rows if text != " "][: len(documents)]
    cached = (tmp_path / "datasets-cache").rglob("*.arrow")
    assert sum(path.stat().st_size for path in cached) < 2 * 30_000
    with pytest.raises(ValueError, match=source.partition(":")[0]):
        load_documents(source.format(tmp_path), "all", text_column="body", max_bytes=10**9)


def test_expressions_are_read_whole_and_columns_checked(rows: list[str], tmp_path: Path) -> None:
    source, column = f"jsonl:{tmp_path}/rows.jsonl", {"text_column": "body"}
    found = load_documents(source, "train", train_split="train[:50%]", max_bytes=1000, **column)
    assert found[:] == load_documents(source, "train", train_split="train[:50%]", **column)[:]
    with pytest.raises(ValueError, match="has no text column 'text': its columns are body"):
        load_documents(source, "all", max_bytes=1000)


def test_more_is_read_until_it_suffices(
    make_experiment: Callable[..., ExperimentConfig],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    read_paths: dict[str, int],
    tmp_path: Path,
) -> None:
    """Tokens of many bytes each: the first reading gives too few, and in the end they are those of the whole text."""
    monkeypatch.setattr(prepared_data, "MIN_BYTES", 2_000)
    monkeypatch.setattr(prepared_data, "BYTES_PER_TOKEN", 1)
    write(tmp_path / "a.txt", 20_000)
    tokenizer = prepare_data(make_experiment("model.config.vocab_size=400")).tokenizer
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    settings = ["model.config.vocab_size=400", f"data.tokenizer={tmp_path / 'tokenizer'}"]
    settings += [f"data.source=text:{tmp_path}/a.txt", "data.max_train_tokens=10000"]
    read_paths.clear()
    config = make_experiment(*settings, f"data.validation_source=text:{tmp_path}/../*/b.txt")
    (tmp_path / "b.txt").write_text(LINE * 50, encoding="utf-8")
    train = prepare_data(config).train
    assert count_tokens(train) == 10_000
    assert read_paths["a.txt"] < (tmp_path / "a.txt").stat().st_size / 4
    whole = pack_documents(load_documents(f"text:{tmp_path}/a.txt", "all"), tokenizer, 32, max_tokens=10_000)
    assert train["input_ids"][:] == whole["input_ids"][:]
