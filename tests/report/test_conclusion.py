"""A report begins with two sentences that claim no more than its records show, and the terminal ends with the same."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from modeling_alibi_gpt.report.conclusion import Conclusion, conclude
from modeling_alibi_gpt.report.frames import frames
from modeling_alibi_gpt.runtime.records import write_records
from tests.report.test_report import run_script
from tests.support.budget_cases import TOKENS, budget_records
from tests.support.comparison_cases import comparison, methods
from tests.support.example_records import LENGTHS, beta_record, demo_records, extrapolation_record, training_record


def conclusion_of(records: list[dict[str, Any]]) -> Conclusion:
    compared = frames(record for record in records if "comparison" in record)
    return conclude(compared, frames(record for record in records if "comparison" not in record))


def sliding(*names: str) -> list[dict[str, Any]]:
    return [extrapolation_record(name, "sliding", length) for name in names for length in LENGTHS]


def pick_length(records: list[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    return [record for record in records if record["length_tokens"] == length]


def trials(*losses: tuple[float, tuple[float, ...]]) -> list[dict[str, Any]]:
    """Of trained betas, with the loss of each seed."""
    made = []
    for number, (beta, by_seed) in enumerate(losses):
        nats = sum(by_seed) / len(by_seed)
        seeds = {"seeds": list(range(len(by_seed))), "nats_per_token_by_seed": list(by_seed)}
        made.append(beta_record("retrain", number, beta) | seeds | {"nats_per_token": nats, "perplexity": 2.0})
    return made


def test_one_seed_shows_nothing_however_large_the_difference() -> None:
    rope, alibi = sliding("rope"), sliding("alibi")
    assert conclusion_of([*rope, *alibi]).sentences == [
        "From 128 to 2,048 tokens the perplexity of alibi goes from 93.42 to 92.09, and that of rope from 95.88 to "
        "289.49; that alibi is better at 2,048 tokens is not shown, because each model was trained with one seed."
    ]


def test_the_best_of_several_others_is_named_and_those_that_fail_are_not() -> None:
    (sentence,) = conclusion_of(sliding("alibi", "learned", "rope", "none")).sentences
    assert "that of none, the best of the others there, from 116.54 to 196.92" in sentence
    (sentence,) = conclusion_of(sliding("alibi", "learned")).sentences
    assert "goes from 93.42 to 92.09, where no other model can be read; that it falls is shown" in sentence
    assert sentence.endswith("nats per token, for this model alone.")


@pytest.mark.parametrize(
    ("half", "one", "end"),
    [
        (
            (3.0, 3.0, 3.0),
            (3.5, 3.5, 3.5),
            "1/2 is better is shown: the difference is 0.500 ± 0.000 nats per token.",
        ),
        ((3.0, 3.0), (3.5, 3.5), "is not shown, because each β was trained with 2 seeds and it takes 3."),
        ((3.0,), (3.5,), "that 1/2 is better is not shown, because each β was trained with one seed."),
        (
            (3.0, 3.0, 3.0),
            (3.01, 3.01, 3.01),
            "shown: the difference is 0.010 nats per token and the noise 0.020.",
        ),
    ],
)
def test_a_beta_is_better_only_beyond_the_noise_of_enough_seeds(
    half: tuple[float, ...], one: tuple[float, ...], end: str
) -> None:
    (sentence,) = conclusion_of(trials((0.5, half), (1.0, one))).sentences
    assert sentence.startswith("Of 2 values of β, each trained anew, ") and sentence.endswith(end)


def test_a_comparison_speaks_with_its_seeds() -> None:
    sentences = conclusion_of(comparison({"alibi": {}, "rope": {"position_method": "rope"}})).sentences
    assert len(sentences) == 2 and sentences[0].startswith(
        "From 128 to 1,024 tokens the perplexity of alibi goes from "
    )
    assert sentences[1].startswith("At 128 tokens the perplexity of alibi is ")
    assert all(re.search(r"that (alibi|rope) is better at [\d,]+ tokens is (not )?shown", each) for each in sentences)
    assert len(conclusion_of(methods()).sentences) == 2


def test_records_without_an_answer_have_no_conclusion() -> None:
    assert conclusion_of([training_record("alibi")]) == Conclusion()
    assert conclusion_of([beta_record("retrain", 0, 1.0)]).sentences == []
    assert conclusion_of([extrapolation_record("learned", "sliding", 256)]).sentences == []


def test_page_terminal_and_json_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a model whose name is longer than a column of the table"
    records = [*demo_records(), *(record | {"name": name} for record in sliding("sinusoidal"))]
    write_records(tmp_path / "records.jsonl", records)
    options = ["--output-dir", str(tmp_path / "out"), "--json"]
    assert run_script("--records", str(tmp_path / "records.jsonl"), *options) == 0
    terminal, _, result = capsys.readouterr().out.strip().rpartition("\n")
    sentences = conclusion_of(records).sentences
    assert len(sentences) == 2 and json.loads(result)["conclusion"] == sentences
    assert " ".join(terminal.split()).startswith(" ".join(sentences))
    assert max(map(len, terminal.splitlines()[:-1])) <= 80
    assert terminal.splitlines()[-1].endswith(f"open {tmp_path / 'out' / 'report.html'}")
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    section = re.search(r'class="conclusion">(.*?)</section>', html, flags=re.DOTALL)
    assert section is not None and re.findall(r"<li>(.*?)</li>", section[1]) == sentences
    assert html.index("</h1>") < section.start() < html.index("<nav") < html.index("<figure")
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert markdown.split("\n## ")[1].splitlines()[2:] == [f"- {sentence}" for sentence in sentences]


def test_of_several_budgets_the_largest_is_summed_up_by_name() -> None:
    records = budget_records(4)
    name = f"betas, {TOKENS[3]:,} tokens: "
    sentences = conclusion_of(records).sentences
    assert sentences and all(sentence.startswith(name) for sentence in sentences)
    last = [record for record in records if record["comparison"] == f"betas, {TOKENS[3]:,} tokens"]
    assert [name + sentence for sentence in conclusion_of(last).sentences] == sentences


def test_texts_and_tokens_are_not_mixed() -> None:
    records = sliding("alibi", "rope")
    other = {"provenance": records[0]["provenance"] | {"data_fingerprint": "other", "source": "text:b.txt"}}
    (expected,) = conclusion_of(records).sentences
    (sentence,) = conclusion_of([*records, *(record | other | {"perplexity": 1.0} for record in records)]).sentences
    assert sentence.endswith(expected) and sentence != expected
    tokens = [{"stream_fingerprint": name} for name in ("a", "b")]
    for record in records:
        record["provenance"] = record["provenance"] | tokens[record["name"] == "rope"]
    assert conclusion_of(records).sentences == conclusion_of([r for r in records if r["name"] == "alibi"]).sentences


def test_windows_without_overlap_are_named_and_show_no_gain() -> None:
    records = [extrapolation_record("alibi", "nonoverlapping", length) for length in LENGTHS]
    (sentence,) = conclusion_of(records).sentences
    assert sentence.startswith(
        "From 128 to 2,048 tokens, in windows without overlap, the perplexity of alibi goes from "
    )
    assert sentence.endswith(
        "; longer windows have fewer early tokens, so this does not tell what the model gains from length."
    )
    assert "is shown" not in sentence
    rope = [extrapolation_record("rope", "nonoverlapping", length) for length in LENGTHS]
    (sentence,) = conclusion_of([*records, *rope]).sentences
    assert "in windows without overlap," in sentence and "that alibi is better at 2,048 tokens" in sentence


def test_long_names_stay_apart() -> None:
    names = ["alibi-gutenberg-base-lr1e-3", "alibi-gutenberg-base-lr3e-3"]
    records = [record | {"name": name, "model": name} for name in names for record in sliding("alibi")]
    table = conclusion_of(records).table
    assert table is not None and [row[0] for row in table.rows] == ["...nberg-base-lr1e-3", "...nberg-base-lr3e-3"]
    alone = conclusion_of(records[: len(LENGTHS)]).table
    assert alone is not None and [row[0] for row in alone.rows] == ["alibi-gutenberg-b..."]


def test_of_models_that_were_not_compared_at_both_ends_nothing_is_said() -> None:
    alibi = sliding("alibi")
    near, far = (pick_length(sliding("rope"), length) for length in (LENGTHS[0], LENGTHS[-1]))
    for rope in (near, far):
        (sentence,) = conclusion_of([*alibi, *rope]).sentences
        assert "rope" not in sentence and "no other model" not in sentence
    better = [record | {"nats_per_token": 1.0} for record in far]
    (sentence,) = conclusion_of([*alibi, *sliding("none"), *better]).sentences
    assert "that of none from" in sentence and "best of the others" not in sentence


def test_another_reading_of_a_model_is_no_rival() -> None:
    records = sliding("alibi")
    banded = [
        record | {"provenance": record["provenance"] | {"attn_implementation": "alibi_banded"}} for record in records
    ]
    (sentence,) = conclusion_of([*records, *banded]).sentences
    assert "that of" not in sentence and "no other model" not in sentence and "for this model alone" in sentence
