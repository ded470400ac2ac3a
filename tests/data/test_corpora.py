"""Documents of the standard library, of files and of the Hub: the right text and split, or one clear line."""

import gzip
import json
import os
import sys
import sysconfig
import time

import datasets
import huggingface_hub.constants
import pytest
from datasets import Dataset

from modeling_alibi_gpt.data import corpora, documents, row_datasets, stdlib_corpus, text_files
from modeling_alibi_gpt.data.corpora import describe_documents, load_documents
from modeling_alibi_gpt.runtime.manifest import write_manifest


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


def texts(documents):
    return dict(zip(documents["name"], documents["text"], strict=True))


# The standard library


def test_stdlib_splits_are_disjoint_and_of_the_published_sizes():
    num_bytes = {split: describe_documents(load_documents("stdlib", split))["num_bytes"] for split in corpora.SPLITS}
    assert num_bytes["all"] == num_bytes["train"] + num_bytes["validation"] + num_bytes["test"]
    # Measured on CPython 3.9 to 3.13: 5.9-6.1, 0.82-0.89 and 0.67-0.77 MB.
    assert 5.5e6 < num_bytes["train"] < 6.5e6
    assert 0.7e6 < num_bytes["validation"] < 1.0e6
    assert 0.6e6 < num_bytes["test"] < 0.9e6


def test_stdlib_document_is_a_module_with_its_files_under_their_paths():
    documents = texts(load_documents("stdlib", "all"))
    assert documents["json"].startswith("# json/__init__.py\n")
    assert "\n# json/decoder.py\n" in documents["json"]
    assert "# heapq.py\n" in documents["heapq"]
    assert {"# io.py", "# _pyio.py"} <= set(documents["io"].splitlines()), "twins share a document, hence a split"
    assert not {"test", "idlelib", "encodings", "turtle", "pyio", "_pyio"} & set(documents)


def test_stdlib_split_depends_on_the_name_alone():
    # Written out: whoever changes the hash or the salt changes every published figure.
    expected = {"urllib": "validation", "os": "validation", "json": "test", "typing": "test", "asyncio": "train"}
    assert {module: stdlib_corpus._stdlib_split(module) for module in expected} == expected


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the count holds for Python 3.11")
def test_stdlib_holds_long_documents():
    lengths = [len(text) for text in load_documents("stdlib", "train")["text"]]
    # 83 documents have 4,096 tokens of 3.5 bytes (14,336 bytes); characters are a little fewer than bytes.
    assert sum(length >= 14_000 for length in lengths) == pytest.approx(83, abs=8)


def test_stdlib_without_sources_is_refused(tmp_path, monkeypatch):
    (tmp_path / "os.py").write_text("x = 1\n" * 1000)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ValueError, match=r"0\.0 MB for training .* expected at least 5\.0 and 0\.5.*text:GLOB"):
        load_documents("stdlib", "train")


# Files


def test_text_train_and_validation_are_head_and_tail_of_every_document(tmp_path):
    lines = [f"line {number} of the text" for number in range(400)]
    (tmp_path / "b.txt").write_text("\n".join(lines))
    (tmp_path / "a.txt").write_text("x" * 1000)  # no line boundary: cut in the middle
    whole, train, validation = (
        texts(load_documents(f"text:{tmp_path}/*.txt", split)) for split in ("all", "train", "validation")
    )
    assert list(whole) == ["a.txt", "b.txt"]
    for name, text in whole.items():
        assert train[name] + validation[name] == text
    assert len(train["a.txt"]) == 900
    assert train["b.txt"].endswith("\n")
    assert len(validation["b.txt"]) == pytest.approx(0.1 * len(whole["b.txt"]), abs=len("line 399 of the text\n"))


def test_text_reads_gz_and_subfolders_and_names_documents_from_their_common_folder(tmp_path):
    (tmp_path / "one" / "deep").mkdir(parents=True)
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "deep" / "b.txt").write_text("deep")
    (tmp_path / "two" / "a.txt.gz").write_bytes(gzip.compress("gepackt \U0001f600".encode(), mtime=0))
    documents = texts(load_documents(f"text:{tmp_path}/**/*.txt*", "all"))
    assert documents == {"one/deep/b.txt": "deep", "two/a.txt.gz": "gepackt \U0001f600"}


def test_text_that_changed_is_read_anew_even_with_its_old_size_and_time(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    before = load_documents(f"text:{path}", "all")
    path.write_text("after!")
    os.utime(path, ns=times)
    after = load_documents(f"text:{path}", "all")
    assert (before[0]["text"], after[0]["text"]) == ("before", "after!")
    assert before._fingerprint != after._fingerprint


def test_text_that_did_not_change_comes_from_the_cache(tmp_path):
    (tmp_path / "a.txt").write_text("same")
    first, second = (load_documents(f"text:{tmp_path}/a.txt", "all") for _ in range(2))
    assert first.cache_files == second.cache_files
    assert first._fingerprint == second._fingerprint == describe_documents(first)["fingerprint"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty.txt is empty"),
        ("blank.txt", b" \n\n", "blank.txt is empty"),
        ("nul.txt", b"text\0text", "nul.txt is not text.*NUL"),
        ("latin.txt", b"caf\xe9", "latin.txt is not text.*UTF-8, got 0xe9"),
        ("cut.gz", gzip.compress(b"text" * 1000, mtime=0)[:-9], "cut.gz is not a valid gzip file"),
        ("plain.gz", b"not packed", "plain.gz is not a valid gzip file"),
        (
            "damaged.gz",
            gzip.compress(b"text" * 1000, mtime=0)[:12] + b"\xff" * 40,
            "damaged.gz is not a valid gzip file",
        ),
    ],
)
def test_text_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_documents(f"text:{tmp_path}/*", "all")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.ndjson", "rows.parquet"])
def test_text_refuses_rows_and_names_the_source_that_reads_them(tmp_path, name):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / name).write_bytes(gzip.compress(b'{"text": "a"}') if name.endswith(".gz") else b'{"text": "a"}')
    kind = "parquet" if name.endswith(".parquet") else "jsonl"
    with pytest.raises(ValueError, match=f"{name} holds rows, .* one text: use {kind}:{tmp_path}/{name}, .*_column"):
        load_documents(f"text:{tmp_path}/*", "all")


def test_text_refuses_what_it_does_not_have(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="no file matches '.*missing.txt'"):
        load_documents(f"text:{tmp_path}/missing.txt", "train")
    with pytest.raises(ValueError, match="has no test split"):
        load_documents(f"text:{tmp_path}/a.txt", "test")
    with pytest.raises(ValueError, match="the validation split of .* is empty"):
        load_documents(f"text:{tmp_path}/a.txt", "validation")
    with pytest.raises(ValueError, match="at least 0 and below 1, got 1"):
        load_documents(f"text:{tmp_path}/a.txt", "train", validation_fraction=1)


# Rows in files


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_rows_of_files_are_documents_with_their_column(tmp_path, kind):
    for number in range(3):
        rows = [{"body": f"document {number} {row}", "stars": row} for row in range(20)] + [{"body": " ", "stars": 1}]
        table = Dataset.from_list(rows)
        path = tmp_path / f"{number}.{kind}"
        if kind == "parquet":
            table.to_parquet(path)
        else:
            data = "\n".join(map(json.dumps, rows)).encode()
            path.write_bytes(gzip.compress(data) if kind == "jsonl.gz" else data)
    source = f"{kind.partition('.')[0]}:{tmp_path}/0.*,{tmp_path}/2.*"
    whole, train, validation = (
        load_documents(source, split, text_column="body", validation_fraction=0.3)["text"][:]
        for split in ("all", "train", "validation")
    )
    assert whole == [f"document {number} {row}" for number in (0, 2) for row in range(20)]
    assert sorted(train + validation) == sorted(whole) and min(len(train), len(validation)) > 3
    assert load_documents(source, "train[:5]", text_column="body")["text"][:] == whole[:5]
    with pytest.raises(ValueError, match="no text column 'text': its columns are body, stars"):
        load_documents(source, "train")


def test_a_file_of_broken_rows_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "whole"}\n{"text": "bro')
    with pytest.raises(ValueError, match="jsonl:.*a.jsonl cannot be read .*: check .* no line is cut off"):
        load_documents(f"jsonl:{tmp_path}/a.jsonl", "train")
    with pytest.raises(ValueError, match="no file matches '.*b.jsonl'"):
        load_documents(f"jsonl:{tmp_path}/a.jsonl,{tmp_path}/b.jsonl", "train")


@pytest.mark.parametrize("folder", ["[2024] dump", "a*b?", "50% & ü"])
def test_rows_are_found_whatever_the_name_of_their_folder(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "d[1].jsonl").write_bytes(b'{"text": "one"}\r\n{"text": "two"}\r\n')
    for max_bytes in (None, 10**6):
        documents = load_documents(f"jsonl:{tmp_path}/*/*.jsonl", "all", max_bytes=max_bytes)
        assert documents["text"][:] == ["one", "two"]


def test_files_without_rows_are_named(tmp_path):
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b""))
    for name, max_bytes in (("a.jsonl", None), ("a.jsonl", 10**6), ("a.jsonl.gz", None)):
        with pytest.raises(ValueError, match=f"jsonl:{tmp_path / name} has no rows"):
            load_documents(f"jsonl:{tmp_path / name}", "train", max_bytes=max_bytes)


# The Hub


@pytest.fixture
def hub_folder(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"body": text, "stars": 1} for text in ("first", "", None, " \n", "second")]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "validation.jsonl").write_text(json.dumps({"body": "held out", "stars": 2}))
    return folder


def test_hub_rows_are_documents_and_empty_ones_are_skipped(hub_folder):
    documents = load_documents(f"hub:{hub_folder}", "train", text_column="body")
    assert texts(documents) == {f"{hub_folder}/train/0": "first", f"{hub_folder}/train/4": "second"}
    assert load_documents(f"hub:{hub_folder}", "validation", text_column="body")["text"][:] == ["held out"]
    assert load_documents(f"hub:{hub_folder}", "all", text_column="body")["text"][:] == ["first", "second", "held out"]


def test_hub_refuses_what_it_does_not_have(hub_folder):
    with pytest.raises(ValueError, match="no text column 'text': its columns are body, stars"):
        load_documents(f"hub:{hub_folder}", "train")
    with pytest.raises(ValueError, match="no text column 'stars'"):
        load_documents(f"hub:{hub_folder}", "train", text_column="stars")
    with pytest.raises(ValueError, match="has no test split: its splits are train, validation"):
        load_documents(f"hub:{hub_folder}", "test", text_column="body")
    with pytest.raises(ValueError, match="'other' not found"):
        load_documents(f"hub:{hub_folder}:other", "train", text_column="body")


@pytest.fixture
def write_corpus(tmp_path):
    def write(documents, split="train"):
        folder = tmp_path / "corpus"
        folder.mkdir(exist_ok=True)
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents))
        return f"hub:{folder}"

    return write


def test_hub_dataset_without_validation_split_holds_a_share_of_its_documents_back(write_corpus):
    documents = [f"document {number}" for number in range(500)]
    source = write_corpus(documents)
    write_corpus(["test"], "test")
    train, validation = (texts(load_documents(source, split)) for split in ("train", "validation"))
    assert train | validation == {f"{source[4:]}/train/{number}": text for number, text in enumerate(documents)}
    assert not train.keys() & validation.keys()
    # 500 independent draws of 0.1: within four standard deviations.
    assert len(validation) == pytest.approx(50, abs=4 * (500 * 0.1 * 0.9) ** 0.5)
    assert len(load_documents(source, "train", validation_fraction=0)) == 500
    assert load_documents(source, "test")["text"][:] == ["test"]
    assert len(load_documents(source, "all")) == 501


def test_a_document_stays_in_its_share_when_others_come_and_go(write_corpus):
    documents = [f"document {number}" for number in range(200)]
    before = {split: set(load_documents(write_corpus(documents), split)["text"]) for split in ("train", "validation")}
    grown = [*(f"new {number}" for number in range(100)), *documents[::-1], documents[0]]
    for split, kept in before.items():
        after = load_documents(write_corpus(grown), split)["text"][:]
        assert {text for text in after if not text.startswith("new")} == kept
    larger = set(load_documents(write_corpus(documents), "validation", validation_fraction=0.2)["text"])
    assert before["validation"] < larger


def test_hub_shares_that_cannot_be_had_are_refused_in_a_line(write_corpus):
    source = write_corpus(["one document"])
    with pytest.raises(ValueError, match="validation_fraction 1e-06 leaves no documents for validation"):
        load_documents(source, "validation", validation_fraction=1e-6)
    with pytest.raises(ValueError, match="at least 0 and below 1, got 1"):
        load_documents(source, "validation", validation_fraction=1)
    with pytest.raises(ValueError, match="has no test split: its splits are train"):
        load_documents(source, "test")


@pytest.mark.parametrize("number", [0, 1], ids=["rows", "documents"])
def test_a_cut_copy_of_a_hub_dataset_in_the_cache_is_named(write_corpus, tmp_path, number):
    source = write_corpus([f"document {number} " * 50 for number in range(300)])
    load_documents(source, "train")
    cached = sorted((tmp_path / "datasets-cache").rglob("*.arrow"), key=lambda path: path.name.startswith("cache-"))
    cached[number].write_bytes(cached[number].read_bytes()[:-1000])
    with pytest.raises(ValueError, match=f"{source}: its copy in the datasets cache {tmp_path}.*: delete that copy"):
        load_documents(source, "train")


def test_hub_dataset_of_other_splits_names_them(write_corpus):
    source = write_corpus(["a test"], "test")
    for split in ("train", "validation"):
        with pytest.raises(ValueError, match=f"has no {split} split: its splits are test .without a validation split"):
            load_documents(source, split)


def test_hub_dataset_without_text_is_refused(hub_folder):
    (hub_folder / "train.jsonl").write_text('{"body": " ", "stars": 3}')
    with pytest.raises(ValueError, match="has no text in the column 'body' of its train split"):
        load_documents(f"hub:{hub_folder}", "train", text_column="body")


def test_hub_without_network_says_at_once_what_to_do(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    started = time.perf_counter()
    with pytest.raises(ValueError, match="hub:nobody/nothing:raw cannot be read.*HF_HUB_OFFLINE=1.*text:GLOB"):
        load_documents("hub:nobody/nothing:raw", "train")
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("location", "arguments"),
    [
        ("owner/name", {"path": "owner/name", "name": None, "revision": None}),
        ("owner/name:raw", {"path": "owner/name", "name": "raw", "revision": None}),
        ("owner/name:raw@refs/pr/1", {"path": "owner/name", "name": "raw", "revision": "refs/pr/1"}),
        ("owner/name@0123abc", {"path": "owner/name", "name": None, "revision": "0123abc"}),
    ],
)
def test_name_configuration_revision_and_split_reach_the_library(monkeypatch, location, arguments):
    """The library itself is a stand-in here: there is no Hub in a test."""
    calls = []

    def load_dataset(**given):
        calls.append(given)
        rows = Dataset.from_dict({"text": ["a", "b"]})
        return datasets.DatasetDict({"train": rows}) if given["split"] is None else rows.select([0])

    monkeypatch.setattr(row_datasets.datasets, "load_dataset", load_dataset)
    assert load_documents(f"hub:{location}", "train[:1%]")["text"][:] == ["a"]
    common = {**arguments, "streaming": False, "trust_remote_code": False}
    assert calls == [{**common, "split": None}, {**common, "split": "train[:1%]"}]


def test_a_folder_with_an_at_sign_is_no_revision(tmp_path):
    folder = tmp_path / "a@b"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "held"}')
    assert load_documents(f"hub:{folder}", "all")["text"][:] == ["held"]


def test_a_share_of_a_split_expression_validates(write_corpus):
    documents = [f"document {number}" for number in range(300)]
    source = write_corpus(documents)
    train, validation = (
        load_documents(source, split, train_split="train[:50%]")["text"][:] for split in ("train", "validation")
    )
    assert sorted(train + validation) == sorted(documents[:150]) and validation
    for expression in ("train[", "train[:x%]", "train[:1%]+other"):
        with pytest.raises(ValueError, match=r"split must be|hub:.*split"):
            load_documents(source, expression)


# Long documents, and shares of whole ones


def test_a_long_document_is_several_rows_with_the_fingerprint_of_one(tmp_path, monkeypatch):
    text = "\ufeff" + "".join(f"line {number} caf\u00e9\n" for number in range(300))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"short"))
    whole = {split: load_documents(f"text:{tmp_path}/*", split) for split in ("all", "train", "validation")}
    monkeypatch.setattr(documents, "ROW_CHARACTERS", 500)
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(text_files, "READ_BYTES", 77)  # which cuts characters in two
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "another-cache"))
    monkeypatch.setattr(documents, "_descriptions", {})
    for split, expected in whole.items():
        rows = load_documents(f"text:{tmp_path}/*", split)
        assert rows._fingerprint == expected._fingerprint == describe_documents(expected)["fingerprint"]
        monkeypatch.setattr(documents, "_descriptions", {})
        assert describe_documents(rows) == describe_documents(expected)
        assert len(rows) > 3 if split != "validation" else len(rows) >= 2
        assert max(map(len, rows["text"])) <= 600
        assert "".join(rows["text"]) == "".join(expected["text"])
        assert len({number for number, _ in documents.document_rows(rows)}) == 2


def test_whole_text_files_validate_by_their_contents(tmp_path):
    def write(numbers):
        for number in numbers:
            (tmp_path / f"{number}.txt").write_text(f"document {number}")

    def shares():
        return [
            set(load_documents(f"text:{tmp_path}/*.txt", split, validation_unit="document")["text"])
            for split in ("train", "validation")
        ]

    write(range(150))
    train, validation = shares()
    assert train | validation == {f"document {number}" for number in range(150)} and not train & validation
    assert len(validation) == pytest.approx(15, abs=4 * (150 * 0.1 * 0.9) ** 0.5)
    write(range(150, 200))
    grown_train, grown_validation = shares()
    assert train < grown_train and validation < grown_validation
    with pytest.raises(ValueError, match="validation_unit tail applies to text: sources"):
        load_documents(f"jsonl:{tmp_path}/*.txt", "train", validation_unit="tail")


# All


@pytest.mark.parametrize("source", ["wikitext", "text:", "hub:", "jsonl:", "stdlib:json", ""])
def test_unknown_source_is_refused(source):
    with pytest.raises(ValueError, match="expected stdlib, text:GLOB, jsonl:GLOB, parquet:GLOB or hub:NAME"):
        load_documents(source, "train")


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of train, validation, test, all, got 'valid'"):
        load_documents("stdlib", "valid")


def test_description_counts_bytes_and_tells_texts_apart():
    described = [{"name": "a", "text": "\u00e9\u4e16"}, {"name": "b", "text": "xy"}]
    description = describe_documents(Dataset.from_list(described))
    assert (description["num_documents"], description["num_bytes"]) == (2, 2 + 3 + 2)
    moved = [{"name": "a", "text": "\u00e9\u4e16b"}, {"name": "", "text": "xy"}]
    variants = [Dataset.from_list(rows) for rows in (described, described[::-1], moved)]
    assert len({describe_documents(variant)["fingerprint"] for variant in variants}) == 3


def test_full_disk_is_reported_as_such(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")

    def write_to_full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.arrow_writer.ArrowWriter, "finalize", write_to_full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        load_documents(f"text:{tmp_path}/a.txt", "all")


def test_what_an_earlier_version_cached_is_generated_again(tmp_path):
    (tmp_path / "a.txt").write_text("one line\n" * 50, encoding="utf-8")
    source = f"text:{tmp_path}/a.txt"
    before = load_documents(source, "all")
    [rows] = (tmp_path / "datasets-cache").rglob("rows.arrow")
    rows.rename(rows.with_name("generator-train.arrow"))
    write_manifest(rows.parent)
    assert load_documents(source, "all")["text"] == before["text"] and rows.exists()
