"""Milestones on a page: when a fine-tuned model is as good as its start, and what it reads beyond."""

from pathlib import Path
from typing import Any

from modeling_alibi_gpt.reporting.milestones import findings, milestone_sections, milestone_table
from modeling_alibi_gpt.reporting.records import check_record
from modeling_alibi_gpt.reporting.report import build_report
from tests.example_records import PROVENANCE


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


def test_the_first_milestone_that_is_as_good_is_named() -> None:
    assert findings(RECORDS, "GPT-2") == [
        "fine-tuned: 400.00 at 128 tokens before fine-tuning; as good as GPT-2 (60.00) after 204,800 tokens; "
        "after 409,600 tokens 55.00 at 128 tokens and 54.00 at 512 tokens with non-overlapping windows."
    ]
    assert "at none of its milestones" in findings(RECORDS[:6], "GPT-2")[0]
    control = [milestone("control", step, 128, perplexity) for step, perplexity in ((0, 60.0), (200, 58.0))]
    assert findings([*RECORDS[:2], *control], "GPT-2") == [
        "control: 60.00 at 128 tokens before fine-tuning; after 409,600 tokens 58.00 at 128 tokens with "
        "non-overlapping windows."
    ]


def test_a_length_that_cannot_be_read_is_a_footnote() -> None:
    table = milestone_table(RECORDS)
    assert table.rows[0] == ["GPT-2", "1,000", "2,048,000", "60.00", "failed (1)"]
    assert table.rows[-1] == ["fine-tuned", "200", "409,600", "55.00", "54.00"]
    assert table.footnotes == ["GPT-2: IndexError: index out of range"]


def test_the_section_is_drawn(tmp_path: Path) -> None:
    (section,) = milestone_sections({"milestone": RECORDS})
    assert section.findings == findings(RECORDS, "GPT-2")
    (figure,) = build_report(RECORDS, tmp_path, title="T")["figures"]
    assert Path(figure).name == "milestones.png" and Path(figure).stat().st_size > 10_000


def test_a_start_alone_has_no_figure() -> None:
    (section,) = milestone_sections({"milestone": RECORDS[:2]})
    assert section.pictures == [] and section.findings == []
