"""Milestones on a page: when a fine-tuned model is as good as its start, and what it reads beyond."""

import re
from pathlib import Path
from typing import Any

from modeling_alibi_gpt.report.frames import frame_of, milestone_runs
from modeling_alibi_gpt.report.report import build_report
from modeling_alibi_gpt.report.tables import milestone_table
from modeling_alibi_gpt.runtime.records import check_record
from tests.support.example_records import PROVENANCE


def milestone(name: str, step: int, length: int, perplexity: float | None) -> dict[str, Any]:
    record = {
        **{"kind": "milestone", "name": name, "position_method": "gpt2" if name == "GPT-2" else "alibi"},
        **{"step": step, "num_train_tokens": 2048 * step, "train_length_tokens": 128, "protocol": "nonoverlapping"},
        **{"length_tokens": length, "stride_tokens": None, "nats_per_token": 4.0, "perplexity": perplexity},
        **{"error": None if perplexity else "IndexError: index out of range", "provenance": PROVENANCE},
    }
    check_record(record)
    return record


RECORDS = [
    *(milestone("GPT-2", 1000, length, 60.0 if length == 128 else None) for length in (128, 512)),
    *(milestone("fine-tuned", 0, length, 400.0) for length in (128, 512)),
    *(milestone("fine-tuned", 50, length, 61.0) for length in (128, 512)),
    *(milestone("fine-tuned", 100, length, 59.5) for length in (128, 512)),
    *(milestone("fine-tuned", 200, length, 55.0 if length == 128 else 54.0) for length in (128, 512)),
]


def test_the_first_milestone_that_is_as_good_is_found() -> None:
    start, (run,) = milestone_runs(frame_of(RECORDS))
    assert (start["name"], start["perplexity"], start["num_train_tokens"]) == ("GPT-2", 60.0, 2_048_000)
    assert (run["name"], run["length_tokens"], run["before"]) == ("fine-tuned", 128, 400.0)
    assert (run["reached"], run["num_train_tokens"]) == (204_800, 409_600)
    assert run["ends"] == {"nonoverlapping": [(128, 55.0), (512, 54.0)]}
    _, (short,) = milestone_runs(frame_of(RECORDS[:6]))
    assert short["reached"] is None, "at none of its milestones"
    control = [milestone("control", step, 128, perplexity) for step, perplexity in ((0, 60.0), (200, 58.0))]
    _, (kept,) = milestone_runs(frame_of([*RECORDS[:2], *control]))
    assert kept["reached"] == 0, "as good from the start"


def test_a_length_that_cannot_be_read_is_a_footnote() -> None:
    table = milestone_table(RECORDS)
    assert table.rows[0] == ["GPT-2", "1,000", "2,048,000", "60.00", "failed (1)"]
    assert table.rows[-1] == ["fine-tuned", "200", "409,600", "55.00", "54.00"]
    assert table.footnotes == ["GPT-2: IndexError: index out of range"]


def test_the_section_names_the_numbers_and_is_drawn(tmp_path: Path) -> None:
    written = build_report(RECORDS, tmp_path, title="T")
    (figure,) = written["figures"]
    assert Path(figure).name == "milestones.png" and Path(figure).stat().st_size > 10_000
    (finding,) = findings_of(written["markdown"])
    assert re.findall(r"[\d,.]*\d", finding.removeprefix("fine-tuned").replace("GPT-2", "")) == [
        *("400.00", "128", "60.00", "204,800", "409,600", "55.00", "128", "54.00", "512"),
    ]


def test_a_start_alone_has_no_figure(tmp_path: Path) -> None:
    written = build_report(RECORDS[:2], tmp_path, title="T")
    assert written["figures"] == [] and findings_of(written["markdown"]) == []
    assert "started from it" not in Path(written["markdown"]).read_text(encoding="utf-8")


def findings_of(page: str) -> list[str]:
    text = Path(page).read_text(encoding="utf-8")
    return [line.removeprefix("- ") for line in text.splitlines() if line.startswith("- ")]


def test_trainings_from_scratch_have_no_start(tmp_path: Path) -> None:
    scratch = [milestone("scratch", step, 128, value) for step, value in ((0, 900.0), (100, 90.0), (200, 60.0))]
    longer = [milestone("longer", step, 256, value) for step, value in ((0, 800.0), (200, 70.0))]
    start, runs = milestone_runs(frame_of([*scratch, *longer]))
    assert start is None and [run["name"] for run in runs] == ["scratch", "longer"]
    written = build_report([*scratch, *longer], tmp_path, title="T")
    assert [Path(figure).name for figure in written["figures"]] == ["milestones.png"]
    assert findings_of(written["markdown"]) == [
        "scratch: 900.00 at 128 tokens after 0 tokens of training; after 409,600 tokens 60.00 at 128 tokens with "
        "non-overlapping windows.",
        "longer: after 409,600 tokens 70.00 at 256 tokens with non-overlapping windows.",
    ]
    written = build_report([*RECORDS[:1], *longer], tmp_path / "other", title="T")
    (finding,) = findings_of(written["markdown"])
    assert finding == "longer: after 409,600 tokens 70.00 at 256 tokens with non-overlapping windows."
    text = Path(tmp_path / "report.md").read_text(encoding="utf-8")
    assert "started from it" not in text and "fine-tuning" not in text


def test_trainings_from_scratch_that_were_measured_once_have_no_start(tmp_path: Path) -> None:
    once = [milestone("a", 1000, 128, 60.0), milestone("b", 1000, 128, 55.0)]
    start, runs = milestone_runs(frame_of(once))
    assert start is None and [run["name"] for run in runs] == ["a", "b"]


def test_seeds_of_one_name_are_trainings_of_their_own(tmp_path: Path) -> None:
    records = []
    for seed, perplexity in ((0, 90.0), (1, 60.0)):
        record = milestone("run", 100, 128, perplexity)
        records.append(record | {"provenance": PROVENANCE | {"seed": seed}})
    findings = findings_of(build_report(records, tmp_path, title="T")["markdown"])
    assert [finding.split(":")[0] for finding in findings] == ["run (seed 0)", "run (seed 1)"]
    assert "90.00" in findings[0] and "60.00" in findings[1]
