"""Where the files of a report lie, whatever its records and its settings are called."""

import re
from pathlib import Path

import pytest

from modeling_alibi_gpt.report.report import build_report
from tests.support.comparison_cases import methods


def test_figures_of_one_name_are_numbered(tmp_path: Path) -> None:
    """Two comparisons whose names differ only in what no file name keeps."""
    records = [{**record, "comparison": name} for name in ("a b", "A/b") for record in methods()]
    figures = build_report(records, tmp_path, title="Twins", html=False)["figures"]
    names = [Path(figure).name for figure in figures]
    assert len(set(names)) == len(names) and {"a_b.png", "a_b_2.png", "a_b_training_2.png"} <= set(names)
    linked = re.findall(r"\(figures/([^)]*)\)", (tmp_path / "report.md").read_text(encoding="utf-8"))
    assert linked == names


@pytest.mark.parametrize("name", ["../../../esc", "/abs", "x" * 400, "é" * 300])
def test_whatever_a_comparison_is_called_its_figures_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    records = [{**record, "comparison": name} for record in methods()]
    figures = build_report(records, tmp_path / "out", title="Names", html=False)["figures"]
    assert {Path(figure).resolve().parent for figure in figures} == {(tmp_path / "out" / "figures").resolve()}
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_page_outside_of_its_folder_is_refused(tmp_path: Path) -> None:
    for place in ({"page": "../esc"}, {"figures_folder": "../esc"}, {"figures_folder": "/tmp/esc"}):
        with pytest.raises(ValueError, match="must be a f"):
            build_report(methods(), tmp_path / "out", title="Escape", **place)
    assert not list(tmp_path.iterdir())
