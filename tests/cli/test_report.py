"""``alibi-gpt report`` beyond what the report itself does."""

import json
from pathlib import Path

import pandas as pd
import pytest

from alibi_gpt_cli.main import main
from modeling_alibi_gpt.runtime.records import read_records


ROOT = Path(__file__).parents[2]


def test_records_become_csv_files_by_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = (ROOT / "results").glob("demo_cpu2_*.jsonl")
    folder = tmp_path / "new" / "tables"
    words = ["report", "--records", str(path), "--output-dir", str(tmp_path), "--csv", str(folder), "--json"]
    assert main(words) == 0
    records = read_records(path)
    kinds = dict.fromkeys(record["kind"] for record in records)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["csv"] == [f"{folder}/{kind}.csv" for kind in kinds]
    rows = pd.read_csv(folder / "extrapolation.csv")
    expected = [record["perplexity"] for record in records if record["kind"] == "extrapolation"]
    assert rows["perplexity"].tolist() == pytest.approx(expected, rel=1e-15)
