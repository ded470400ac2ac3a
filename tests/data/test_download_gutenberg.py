"""The novels of the experiments: what a file of Project Gutenberg gives, and what a download keeps and refuses."""

import csv
import gzip
import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "download_gutenberg.py"
HEAD = "Title: A Book\n\n*** START OF THIS PROJECT GUTENBERG EBOOK A BOOK ***\n\n\n\n"
TAIL = "\n\n\n*** END OF THIS PROJECT GUTENBERG EBOOK A BOOK ***\n\n*** START: FULL LICENSE ***\n"
TEXT = "  A BOOK\n\n\n\nIt was “late”.\n"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("download_gutenberg", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "whole",
    [
        HEAD + TEXT + TAIL,
        "\ufeff" + HEAD + TEXT + TAIL,
        (HEAD + TEXT + TAIL).replace("\n", "\r\n"),
        HEAD.replace("*** START OF THIS", "***START OF THE") + TEXT + TAIL.replace("THIS", "THE"),
        HEAD + "Produced by A. Person and\nB. Person\n\n\n\n" + TEXT + TAIL,
        HEAD + "E-text prepared by A. Person\nThe illustrations are by C. Person.\n\n\n\n" + TEXT + TAIL,
        HEAD + TEXT + "\n\nEnd of The Project Gutenberg Etext of A Book" + TAIL,
        HEAD + TEXT.replace("It", "[Project Gutenberg Editor's Note: there are\nothers]\n\n\nIt") + TAIL,
    ],
)
def test_only_the_text_of_a_book_stays(script: ModuleType, whole: str) -> None:
    assert script.text_of(whole.encode()) == TEXT


def test_older_files_are_latin_1(script: ModuleType) -> None:
    assert script.text_of((HEAD + "naïve\n" + TAIL).encode("latin-1")) == "naïve\n"


def test_the_table_names_one_source_and_one_sum_for_each_book(script: ModuleType) -> None:
    with script.BOOKS.open(newline="") as table:
        books = list(csv.DictReader(table))
    numbers = {book["repository"].rpartition("_")[2] for book in books}
    assert len(books) == len(numbers) == len({book["sha256"] for book in books}) == 25
    assert sum(book["file"].startswith("valid/") for book in books) == 3
    for book in books:
        number = book["repository"].rpartition("_")[2]
        assert Path(book["file"]).name.startswith(f"{number}-") and book["path"].startswith(number)
        assert (len(book["commit"]), len(book["sha256"])) == (40, 64)


@pytest.fixture
def source(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of one book, which is the only one of the table."""
    folder = tmp_path / "source"
    (folder / "A-Book_1" / "abc").mkdir(parents=True)
    (folder / "A-Book_1" / "abc" / "1.txt").write_text(HEAD + TEXT + TAIL, encoding="utf-8")
    table = tmp_path / "books.csv"
    sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
    table.write_text(f"file,repository,commit,path,sha256\ntrain/1-a-book.txt.gz,A-Book_1,abc,1.txt,{sha256}\n")
    monkeypatch.setattr(script, "BOOKS", table)
    return folder


def test_a_book_is_written_once_and_again_if_it_is_damaged(
    script: ModuleType, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--output-dir", str(tmp_path / "out"), "--source", source.as_uri()]
    book = tmp_path / "out" / "train" / "1-a-book.txt.gz"
    assert script.main(arguments) == 0 and gzip.decompress(book.read_bytes()).decode() == TEXT
    (source / "A-Book_1" / "abc" / "1.txt").rename(source / "1.txt")
    assert script.main(arguments) == 0
    assert capsys.readouterr().out == f"wrote {book}\nkept {book}\n"
    book.write_bytes(book.read_bytes()[:-9])
    (source / "1.txt").rename(source / "A-Book_1" / "abc" / "1.txt")
    assert script.main(arguments) == 0 and gzip.decompress(book.read_bytes()).decode() == TEXT


@pytest.mark.parametrize("damage", ["other text", "no markers", "missing"])
def test_what_is_not_the_same_book_is_refused_in_one_line(
    script: ModuleType, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    file = source / "A-Book_1" / "abc" / "1.txt"
    texts = {"other text": HEAD + TEXT + "More.\n" + TAIL, "no markers": TEXT}
    expected = {"other text": "expected a text with SHA-256", "no markers": "without its lines", "missing": "No such"}
    if damage == "missing":
        file.unlink()
    else:
        file.write_text(texts[damage], encoding="utf-8")
    assert script.main(["--output-dir", str(tmp_path / "out"), "--source", source.as_uri()]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and file.as_uri() in line and expected[damage] in line
    assert not (tmp_path / "out").exists()


@pytest.mark.network
def test_the_shortest_book_can_be_downloaded(script: ModuleType, tmp_path: Path) -> None:
    with script.BOOKS.open(newline="") as table:
        [book] = [row for row in csv.DictReader(table) if "pride-and-prejudice" in row["file"]]
    assert script.download(book, tmp_path, script.SOURCE)
