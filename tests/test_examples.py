"""The notebook runs, and what it shows in the repository is what a run showed."""

import json
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "alibi_tour.ipynb"
MAX_BYTES = 600_000
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, as if the package were installed; an error in a cell is raised here."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell["outputs"] = []
    resources = {"metadata": {"path": str(tmp_path)}}
    options = {"timeout": 600, "kernel_name": "python3", "coalesce_streams": True}
    NotebookClient(notebook, resources=resources, **options).execute()
    assert [kinds_of(cell) for cell in notebook.cells] == [kinds_of(cell) for cell in CELLS]


def kinds_of(cell: dict) -> list[str]:
    """What a cell shows, by the kinds of its outputs; standard error is left out, for warnings come and go."""
    outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    return [kind for output in outputs for kind in sorted(output.get("data", [output["output_type"]]))]


def test_its_outputs_are_there_and_small() -> None:
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = [kind for cell in code for kind in kinds_of(cell)]
    assert kinds.count("image/svg+xml") == 6 and "error" not in kinds
    assert not [output for cell in code for output in cell["outputs"] if output.get("name") == "stderr"]
    assert "/tmp/" not in NOTEBOOK.read_text(encoding="utf-8")


def test_its_links_lead_somewhere() -> None:
    text = "".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https:")]
    assert len(links) >= 5 and all((NOTEBOOK.parent / link).is_file() for link in links)
