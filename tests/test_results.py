"""RESULTS.md is what its records say, letter by letter; nobody wrote it by hand."""

from pathlib import Path

from modeling_alibi_gpt.report.report import ReportConfig, build_report
from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.runtime.records import read_records


ROOT = Path(__file__).resolve().parents[1]


def test_the_page_is_that_of_its_records(tmp_path: Path) -> None:
    config = load_config(ReportConfig, str(ROOT / "configs" / "report" / "results.yaml"))
    records = [record for path in config.records for record in read_records(ROOT / path)]
    paths = build_report(
        records,
        tmp_path,
        title=config.title,
        page=config.page,
        figures_folder=config.figures_folder,
        html=config.html,
        claims=config.claims,
    )
    assert Path(paths["markdown"]).read_text(encoding="utf-8") == (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert len(set(paths["figures"])) == len(paths["figures"])
    figures = {Path(path).relative_to(tmp_path) for path in paths["figures"]}
    assert figures and all((ROOT / figure).is_file() for figure in figures)
    assert {path.name for path in (ROOT / config.figures_folder).iterdir()} == {figure.name for figure in figures}
