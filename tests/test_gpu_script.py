"""``make gpu`` at toy sizes on a CPU: every part runs, and its records are whole."""

from pathlib import Path

import pytest

from benchmarks import gpu
from modeling_alibi_gpt.runtime.records import check_record, read_records


KINDS = {"correctness": {"gpu_tests"}, "attention": {"attention_speed"}, "models": {"model_speed", "decode_speed"}}


@pytest.mark.parametrize("part", [*KINDS, pytest.param("evidence", marks=pytest.mark.slow)])
def test_parts_run_and_record(part: str, tmp_path: Path) -> None:
    assert gpu.main(["--tiny", "--parts", part, "--output-dir", str(tmp_path)]) == 0, (
        tmp_path / f"{part}.log"
    ).read_text()
    if part == "evidence":
        records = read_records(tmp_path / "evidence" / "comparison.jsonl")
        assert any(record["kind"] == "comparison" for record in records)
        return
    records = read_records(tmp_path / f"{part}.jsonl")
    for record in records:
        check_record(record)
    assert {record["kind"] for record in records} == KINDS[part]
    if part == "correctness":
        assert records[0]["passed"] > 0 and records[0]["failed"] == 0


def test_a_part_that_outlasts_its_time_leaves_the_others_theirs(tmp_path: Path) -> None:
    assert gpu.run_part("attention", tmp_path, 0.1, is_tiny=True) == 124


def test_unknown_parts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--parts", "attention,speed", "--output-dir", str(tmp_path / "new")]) == 2
    assert "unknown part speed" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
