"""What a report says of the use of distant text: shares and differences as they stand in the records."""

import itertools
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from modeling_alibi_gpt.report.context_plots import cut_above_whole
from modeling_alibi_gpt.report.context_tables import context_table, last_occurrence_tables, recall_table
from modeling_alibi_gpt.report.frames import frame_of, merged_seeds
from modeling_alibi_gpt.report.report import build_report
from modeling_alibi_gpt.runtime.records import check_record
from tests.support.context_cases import context_record, context_records, recall_record, recall_records


def page(records: list[dict[str, Any]], folder: Path) -> tuple[str, list[str]]:
    paths = build_report(records, folder, title="T")
    return Path(paths["markdown"]).read_text(encoding="utf-8"), [Path(path).name for path in paths["figures"]]


def test_shares_stand_by_length_and_depth() -> None:
    table = recall_table(recall_records())
    assert table.header == ["model", "depth", "128", "256", "512"]
    assert [row[:2] for row in table.rows[:3]] == [["alibi", "0"], ["alibi", "0.5"], ["alibi", "1"]]
    assert table.rows[0][2:] == ["1.00", "0.90", "0.25"] and table.rows[2][2:] == ["1.00", "1.00", "0.45"]
    assert table.rows[3][2:] == ["1.00", "failed (1)", "failed (1)"]
    assert table.footnotes == ["learned: the learned table ends at 128 positions"]


def test_seeds_are_a_mean_and_its_ends() -> None:
    seeds = [recall_record("alibi", 512, 0.0, seed=seed, accuracy=share) for seed, share in enumerate((0.2, 0.4, 0.9))]
    assert recall_table(seeds).rows == [["alibi", "0", "0.50 (0.20 to 0.90)"]]


def test_copies_are_counted_by_their_tokens() -> None:
    (row,) = recall_table([recall_record("alibi", 512, None, source="task:copy")]).rows
    assert row[2] == f"{(1 + 0.25) / 2:.2f}"


def test_the_section_says_the_numbers_of_strong_and_weak_alike(tmp_path: Path) -> None:
    text, figures = page(recall_records(), tmp_path)
    assert figures == ["recall_task_recall.png"]
    assert "- alibi: 1.00 at 128 tokens, 0.35 at 512 (0.25 at depth 0, 0.45 at depth 1)." in text
    assert "- rope: 1.00 at 128 tokens, 0.10 at 512 (0.00 at depth 0, 0.20 at depth 1)." in text
    assert "- learned: 1.00 at 128 tokens (1.00 at depth 0, 1.00 at depth 1)." in text


def test_each_task_has_its_section(tmp_path: Path) -> None:
    copies = [recall_record("alibi", length, None, source="task:copy") for length in (128, 512)]
    prompts = recall_records(source="prompt:passkey")
    text, figures = page([*copies, *prompts], tmp_path)
    assert "## Copying\n" in text and "## Passkey by prompt\n" in text
    assert figures == ["recall_task_copy.png", "recall_prompt_passkey.png"]


def test_differences_stand_by_kept_tokens() -> None:
    table = context_table(context_records())
    assert table.header == ["model", "beyond", "32", "64", "128", "256", "whole"]
    assert [row[:2] for row in table.rows] == [
        [name, reading] for name in ("alibi", "rope") for reading in ("replaced", "cut")
    ]
    assert table.rows[3][2:] == [
        *(f"+{0.1 * 64 / kept:.3f} \N{PLUS-MINUS SIGN} 0.000" for kept in (32, 64, 128, 256)),
        "4.0000",
    ]


def test_models_that_differ_in_the_seed_share_a_row(tmp_path: Path) -> None:
    records = []
    for seed, worth in enumerate((0.09, 0.10, 0.11)):
        of_seed = {"name": f"rope-seed{seed}", "model": f"runs/rope-seed{seed}"}
        records += [context_record("rope", "whole", None) | of_seed]
        for reading in ("replaced", "cut"):
            part = context_record("rope", reading, 128)
            losses = [loss + worth - part["difference_nats"] for loss in part["nats_per_token_by_block"]]
            records += [part | of_seed | {"difference_nats": worth, "nats_per_token_by_block": losses}]
    text, _ = page(records, tmp_path)
    half = 4.3027 * 0.01 / 3**0.5  # Student's t with two degrees of freedom: the difference is the same in all blocks
    measured = f"+0.100 \N{PLUS-MINUS SIGN} {half:.3f}"
    assert f"| rope | cut | {measured} | 4.0000 |" in text
    assert f"training length: replaced {measured} nats, higher than the whole; cut off {measured} nats" in text
    assert "half of the 95 % interval over seeds and blocks" in text
    assert "| rope | cut at 128 |" in text and "rope-seed" not in text


def test_a_failure_is_a_footnote() -> None:
    failed = context_record("rope", "cut", 32)
    failed |= {"error": "no memory", "nats_per_token": None, "difference_nats": None}
    failed |= {"nats_per_token_by_block": None, "nats_by_last_occurrence": None}
    check_record(failed)
    table = context_table([context_record("rope", "whole", None), failed])
    assert (table.rows[1][2], table.footnotes) == ("failed (1)", ["rope: no memory"])


def test_a_reading_that_always_failed_has_no_panel(tmp_path: Path) -> None:
    records = [context_record("alibi", "whole", None), context_record("alibi", "cut", 128)]
    both = [*records, context_record("alibi", "replaced", 128)]
    heights = []
    for name, some in (("one", records), ("both", both)):
        assert page(some, tmp_path / name)[1] == ["context.png", "last_occurrence.png"]
        heights.append(matplotlib.image.imread(tmp_path / name / "figures" / "context.png").shape[0])
    assert heights[0] < heights[1]


def test_losses_stand_by_last_occurrence() -> None:
    (table,) = last_occurrence_tables(context_records())
    bins = ["1 to 7", "8 to 31", "32 to 127", "128 to 255"]  # none of the last occurrences is further away
    assert table.header == ["model", "read", *bins, "not before"]
    assert table.rows[0][2:] == ["400", "300", "200", "100", "50"]
    rope = table.rows[3:]
    assert [row[1] for row in rope] == ["whole", "cut at 128"]
    assert [row[5:] for row in rope] == [["5.0000", "9.0000"], ["5.0500", "9.0500"]]


def test_other_bins_have_a_table_of_their_own(tmp_path: Path) -> None:
    others = [record | {"name": "long", "model": "runs/long"} for record in context_records()[9:]]
    for record in others:
        located = record["nats_by_last_occurrence"]
        record["nats_by_last_occurrence"] = located | {"edges_tokens": [1, 16, 64, 128, 256, 512]}
    records = [*context_records(), *others]
    first, second = last_occurrence_tables(records)
    assert first == last_occurrence_tables(context_records())[0]
    assert second.header == ["model", "read", "1 to 15", "16 to 63", "64 to 127", "128 to 255", "not before"]
    assert [row[0] for row in second.rows] == ["tokens", "long", "long"]
    text, figures = page(records, tmp_path)
    assert "last_occurrence.png" in figures and "| 16 to 63 |" in text


def test_texts_are_not_mixed(tmp_path: Path) -> None:
    place = {"data_fingerprint": "other", "source": "text:b.txt"}
    others = [record | {"provenance": record["provenance"] | place} for record in context_records()]
    text, _ = page([*context_records(), *others], tmp_path)
    alone, _ = page(context_records(), tmp_path / "alone")
    (title,) = [line for line in text.splitlines() if line.startswith("## Use of distant text, text:b.txt")]
    rows = [line for line in text.split(title)[1].splitlines() if line.startswith(("| rope", "- rope"))]
    assert rows == [line for line in alone.splitlines() if line.startswith(("| rope", "- rope"))]


def of_models(folder: str, names: list[str], above: float = 0.0) -> list[dict[str, Any]]:
    """ALiBi's whole and cut records of these models, the cut ones higher by ``above`` nats."""
    found = []
    for name, part in itertools.product(names, (("whole", None), ("cut", 128))):
        record = context_record("alibi", *part) | {"name": name, "model": f"{folder}/{name}"}
        if part[1] is not None:
            record["difference_nats"] = above
            record["nats_per_token"] += above
            record["nats_per_token_by_block"] = [nats + above for nats in record["nats_per_token_by_block"]]
        found.append(record)
    return found


SEEDS = ["alibi-seed0", "alibi-seed1", "alibi-seed2"]


@pytest.mark.parametrize(
    ("small", "large", "words"),
    [
        (("runs/small", SEEDS), ("runs/large", SEEDS), ("small", "large")),
        (("small/models", SEEDS), ("large/models", SEEDS), ("small/models", "large/models")),
        (("runs/small", SEEDS[:1]), ("runs/large", SEEDS[1:]), ("small", "large")),
        (("runs/small", [*SEEDS, "base"]), ("runs/large", [*SEEDS[:2], "base"]), ("small", "large")),
    ],
)
def test_comparisons_that_name_their_models_alike_are_not_mixed(
    small: tuple[str, list[str]], large: tuple[str, list[str]], words: tuple[str, str], tmp_path: Path
) -> None:
    text, _ = page([*of_models(*small, 0.02), *of_models(*large, 0.3)], tmp_path)
    titles = [line for line in text.splitlines() if line.startswith("## Use of distant text")]
    assert titles == [f"## Use of distant text, {each}" for each in words]
    rows = [line.split("|")[3] for line in text.splitlines() if line.startswith("| alibi") and "| cut |" in line]
    assert [row.split()[0] for row in rows] == ["+0.020", "+0.300"]


def test_a_name_without_seeds_that_two_folders_share_divides_nothing(tmp_path: Path) -> None:
    text, _ = page([*of_models("small", ["base"]), *of_models("large", ["base"])], tmp_path)
    assert "## Use of distant text\n" in text and "| base (small/base) | cut |" in text


def test_of_repeated_measurements_the_last_one_counts(tmp_path: Path) -> None:
    old, new = of_models("runs", SEEDS[:2], 0.3), of_models("runs", SEEDS[:2], 0.02)
    text, _ = page([*old, *new], tmp_path)
    assert "| alibi | cut | +0.020 \N{PLUS-MINUS SIGN} 0.000 |" in text
    assert "Measurements repeated: 4; the last one of each is shown." in text
    assert "repeated" not in page(new, tmp_path / "new")[0]


def test_seeds_that_were_not_cut_leave_no_curve() -> None:
    records = of_models("runs", SEEDS, 0.02)
    (curve,) = cut_above_whole(merged_seeds(frame_of(records)))
    assert len(curve[2]) == 4
    assert cut_above_whole(merged_seeds(frame_of(records[:-1]))) == []


def test_the_interval_is_named_by_the_number_of_models(tmp_path: Path) -> None:
    three = of_models("runs", SEEDS, 0.02)
    assert "or, with fewer than three models" not in page(three, tmp_path)[0]
    text, _ = page([*three, *of_models("runs", ["gpt2"], 0.02)], tmp_path / "beside")
    assert (
        "over seeds and blocks of the text, or, with fewer than three models, two standard errors over blocks." in text
    )


def test_tokens_that_never_recur_have_no_figure(tmp_path: Path) -> None:
    records = context_records()
    for record in records:
        located = record["nats_by_last_occurrence"]
        record["nats_by_last_occurrence"] = located | {"nats_per_token": [None] * 5, "num_tokens": [0] * 5}
    assert page(records, tmp_path)[1] == ["context.png"]


def test_without_the_whole_nothing_is_said_of_last_occurrences(tmp_path: Path) -> None:
    assert page([context_record("alibi", "cut", 128)], tmp_path)[1] == ["context.png"]


def test_overrides_are_no_seeds(tmp_path: Path) -> None:
    settings = {"overrides": {"alibi_beta": 4.0}}
    recalled = [recall_record("alibi", 512, 0.0, **fields) for fields in ({}, settings, {"accuracy": 0.5})]
    parts = [
        context_record("alibi", *part) | fields
        for part in (("whole", None), ("cut", 128))
        for fields in ({}, settings)
    ]
    text, _ = page([*recalled, *parts], tmp_path)
    assert "| alibi | 0 | 0.50 |" in text and "| alibi (alibi_beta=4.0) | 0 | 0.25 |" in text
    assert "| alibi | cut |" in text and "| alibi (alibi_beta=4.0) | cut |" in text


def test_the_section_says_what_distant_text_is_worth(tmp_path: Path) -> None:
    text, figures = page(context_records(), tmp_path)
    assert figures == ["context.png", "last_occurrence.png"]
    unseen = "no difference was detected"
    assert f"- alibi, keeping 128 tokens, its training length: replaced +0.000 nats, {unseen}; cut off" in text
    assert "replaced +0.300 nats, higher than the whole; cut off +0.050 nats, higher than the whole." in text


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (recall_record("alibi", 128, 0.0) | {"accuracy": None}, "accuracy"),
        (context_record("alibi", "cut", 32) | {"difference_nats": None}, "difference_nats"),
        (context_record("alibi", "cut", 32) | {"kept_tokens": None}, "kept_tokens"),
        (context_record("alibi", "cut", 32) | {"reading": "torn"}, "reading"),
    ],
)
def test_records_without_their_figures_are_refused(record: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        check_record(record)
