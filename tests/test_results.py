"""RESULTS.md and the page of all tables are what their records say, letter by letter."""

from pathlib import Path

import pytest

from modeling_alibi_gpt.report.report import ReportConfig, build_report
from modeling_alibi_gpt.report.written_page import build_written_page
from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.runtime.records import Record, read_records


ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "results" / "figures"


def settings_and_records(name: str) -> tuple[ReportConfig, list[Record]]:
    config = load_config(ReportConfig, str(ROOT / "configs" / "report" / f"{name}.yaml"))
    return config, [record for path in config.records for record in read_records(ROOT / path)]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The file of each name that the page of all tables is made of."""
    config, records = settings_and_records("tables")
    folder = tmp_path_factory.mktemp("tables")
    build_report(records, folder, title=config.title, page=config.page, html=config.html, claims=config.claims)
    return {path.name: path.read_bytes() for path in folder.rglob("*.*")}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same of RESULTS.md."""
    config, records = settings_and_records("results")
    folder = tmp_path_factory.mktemp("results")
    place = {"page": config.page, "figures_folder": config.figures_folder}
    build_written_page(records, ROOT / str(config.template), folder, **place)
    return {path.name: path.read_bytes() for path in folder.rglob("*.*")}


def test_the_page_of_all_tables_is_that_of_its_records(tables: dict[str, bytes]) -> None:
    assert tables["tables.md"] == (FIGURES.parent / "tables.md").read_bytes()


def test_the_written_page_is_that_of_its_records(results: dict[str, bytes]) -> None:
    assert results["RESULTS.md"] == (ROOT / "RESULTS.md").read_bytes()


def test_every_figure_is_there_and_no_other(tables: dict[str, bytes], results: dict[str, bytes]) -> None:
    pages = {"tables.md", "RESULTS.md"}
    assert {path.name for path in FIGURES.iterdir()} == {*tables, *results} - pages


def test_vector_figures_are_those_of_the_records(results: dict[str, bytes]) -> None:
    drawn = {name: svg for name, svg in results.items() if name.endswith(".svg")}
    assert drawn and drawn == {path.name: path.read_bytes() for path in FIGURES.glob("*.svg")}
