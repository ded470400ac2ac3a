"""Pages that a person wrote: numbers are filled in, and a sentence that the records do not support stops the build."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from modeling_alibi_gpt.report.written_page import WrittenPage, build_written_page
from tests.support.budget_cases import budget_records
from tests.support.comparison_cases import methods
from tests.support.context_cases import context_records, recall_record
from tests.support.example_records import PROVENANCE


NAME = methods()[0]["comparison"]
GRID = f'{{% set g = comparison("{NAME}") %}}\n'


def filled(records: list[dict[str, Any]], text: str, folder: Path) -> str:
    template = folder / "page.md.j2"
    template.write_text(text, encoding="utf-8")
    place = {"page": "page", "figures_folder": "figures"}
    return Path(build_written_page(records, template, folder / "out", **place)["markdown"]).read_text(encoding="utf-8")


def page(folder: Path, text: str) -> str:
    return filled(methods(), GRID + text, folder)


@pytest.mark.parametrize(
    ("expression", "written"),
    [
        ('g.difference("rope", "sliding", 128) | lower', "0.050"),
        ('g.difference("rope", "sliding", 128) | below', "\N{MINUS SIGN}0.050"),
        ('g.difference("none", "sliding", 128) | higher', "0.300"),
        ('g.difference("none", "sliding", 128) | above', "+0.300"),
        ('g.difference("none", "sliding", 128) | nats', "+0.300"),
    ],
)
def test_numbers_are_filled_in(tmp_path: Path, expression: str, written: str) -> None:
    assert page(tmp_path, f"It is {{{{ {expression} }}}} nats.") == f"It is {written} nats.\n"


@pytest.mark.parametrize(
    "expression",
    [
        'g.difference("rope", "sliding", 128) | higher',
        'g.difference("rope", "sliding", 128) | above',
        'g.difference("none", "sliding", 128) | lower',
        'g.difference("none", "sliding", 128) | below',
        'g.difference("none", "sliding", 128) | undecided',
        'g.change("rope", "sliding", 1024) | level',
    ],
)
def test_a_word_that_the_records_do_not_show_stops_the_build(tmp_path: Path, expression: str) -> None:
    with pytest.raises(ValueError, match=r"page\.md\.j2: a sentence says '\w+' of .*, but the records do not show it"):
        page(tmp_path, f"It is {{{{ {expression} }}}} nats.")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{{ comparison("another") }}', "no record of another"),
        ('{{ rows("model_speed") }}', "model_speed"),
        ('{{ g.difference("alibo", "sliding", 128) | nats }}', "alibo"),
        ("{{ g.nothing }}", "nothing"),
        ("{{ unknown }}", "unknown"),
        ("{{ g.difference( }}", "expected|unexpected"),
    ],
)
def test_what_the_records_do_not_have_stops_the_build(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"page\.md\.j2: .*({reason})"):
        page(tmp_path, text)


def test_paragraphs_are_wrapped_and_tables_are_not(tmp_path: Path) -> None:
    paragraph, table = "word " * 60, "| a | b |\n| :-- | :-- |\n| " + "cell " * 60 + "| 1 |"
    wrapped, kept = page(tmp_path, f"{paragraph}\n\n{table}").strip().split("\n\n")
    assert max(map(len, wrapped.splitlines())) <= 120 and wrapped.split() == paragraph.split() and kept == table


def test_a_figure_is_an_svg_with_its_letters(tmp_path: Path) -> None:
    text = '{{ figure("lengths", "lengths.svg", "What it shows", [("title", g)], ["alibi", "rope", "none"]) }}'
    assert page(tmp_path, text) == "![What it shows](figures/lengths.svg)\n"
    drawn = ElementTree.parse(tmp_path / "out" / "figures" / "lengths.svg").getroot()
    letters = {element.text for element in drawn.iter() if element.tag.endswith("text")}
    assert {"ALiBi", "RoPE", "no positions", "title"} <= letters


def test_records_of_a_comparison_are_found_by_its_name(tmp_path: Path) -> None:
    text = f'{{{{ rows("training", comparison="{NAME}") | map(attribute="seed") | span }}}}'
    assert page(tmp_path, text) == "0.00 to 2.00\n"
    with pytest.raises(ValueError, match="training"):
        page(tmp_path, '{{ rows("training") }}')


def test_rivals_far_behind_are_on_a_logarithmic_scale(tmp_path: Path) -> None:
    text = '{{ figure("rivals", "rivals.svg", "Rivals", g, ["rope"]) }}'
    assert page(tmp_path, text) == "![Rivals](figures/rivals.svg)\n"
    drawn = ElementTree.parse(tmp_path / "out" / "figures" / "rivals.svg").getroot()
    letters = [element.text for element in drawn.iter() if element.tag.endswith("text")]
    assert {"at the training length", "at 8 training lengths"} <= set(letters)
    # RoPE is 0.05 below ALiBi at 128 tokens and 0.55 above at 1,024.
    assert letters.count("log scale beyond 0.1") == 1


def recalled(shares: dict[str, list[float]], text: str, folder: Path) -> str:
    """A page about a task whose oldest item of 128 tokens each seed of each variant answers in these shares."""
    records = [
        recall_record("alibi", 128, 0.0, comparison="task", variant=variant, seed=seed, accuracy=share)
        for variant, each in shares.items()
        for seed, share in enumerate(each)
    ]
    return filled(records, '{% set task = answers("task") %}\n' + text, folder)


def test_shares_of_right_answers_are_filled_in(tmp_path: Path) -> None:
    text = '{{ task.by_seed("a", 128) | all_below(task.by_seed("b", 128)) | percent }}'
    assert recalled({"a": [0.25, 0.35], "b": [0.5, 0.4]}, text, tmp_path) == "30 %\n"
    tie = '{{ task.by_seed("a", 128) | percent }}'
    assert recalled({"a": [0.96, 0.99]}, tie, tmp_path) == "97 %\n", "as 0.97 in a table, which rounds the same number"
    for shares in ({"a": [0.25, 0.45], "b": [0.5, 0.4]}, {"a": [0.4], "b": [0.4]}):
        with pytest.raises(ValueError, match="a sentence says that .* are below .*, but they are not"):
            recalled(shares, text, tmp_path)


def test_a_task_without_depths_is_answered_by_tokens(tmp_path: Path) -> None:
    shares = {"accuracy": 0.0, "token_accuracy": 0.75, "source": "task:copy", "comparison": "task", "variant": "a"}
    text = '{% set task = answers("task") %}{{ task.by_seed("a", 128, none) | percent }}'
    assert filled([recall_record("alibi", 128, None, **shares)], text, tmp_path) == "75 %\n"


def test_answers_are_drawn_for_each_variant(tmp_path: Path) -> None:
    text = '{{ figure("recall", "recall.svg", "Answers", task.oldest(["a", "b"])) }}'
    assert recalled({"a": [0.25, 0.35], "b": [0.5, 0.4]}, text, tmp_path) == "![Answers](figures/recall.svg)\n"
    drawn = ElementTree.parse(tmp_path / "out" / "figures" / "recall.svg").getroot()
    assert {"a", "b"} <= {element.text for element in drawn.iter() if element.tag.endswith("text")}


def test_gains_of_tuning_are_filled_in(tmp_path: Path) -> None:
    text = '{% set found = budgets("betas") %}\n{{ found.best[0].worth | gain }} at {{ found.budgets[0].tokens }}'
    assert filled(budget_records(3), text, tmp_path) == "0.800 at 524288\n"
    with pytest.raises(ValueError, match=r"speaks of no gain, but the interval is 0\.8000 to 0\.8000 nats"):
        filled(budget_records(3), text.replace("| gain", "| no_gain"), tmp_path)
    text = '{{ budgets("betas").best[2].beta | with_interval }}'
    assert filled(budget_records(3), text, tmp_path) == "8 (8 to 8)\n"
    text = '{{ figure("budgets", "budgets.svg", "Budgets", [budgets("betas")]) }}'
    assert filled(budget_records(3), text, tmp_path) == "![Budgets](figures/budgets.svg)\n"
    with pytest.raises(ValueError, match="no budgets of others"):
        filled(budget_records(3), '{{ budgets("others") }}', tmp_path)


def test_the_worth_of_distant_text_is_filled_in(tmp_path: Path) -> None:
    text = '{% set far = contexts("runs") %}\n{{ far.difference("rope", 128) | higher }}'
    text += ' and {{ far.difference("rope", 128, "replaced") | higher }}'
    assert filled(context_records(), text, tmp_path) == "0.050 and 0.300\n"
    with pytest.raises(ValueError, match="a sentence says 'higher' of"):
        filled(context_records(), '{{ contexts("runs").difference("alibi", 128) | higher }}', tmp_path)
    text = '{{ figure("distant", "distant.svg", "Replaced", contexts("runs").curves(["alibi", "rope"], "replaced")) }}'
    assert filled(context_records(), text, tmp_path) == "![Replaced](figures/distant.svg)\n"
    for missing in ('contexts("runs").difference("none", 128)', 'contexts("runs").difference("rope", 100)'):
        with pytest.raises(ValueError, match="no record of"):
            filled(context_records(), "{{ " + missing + " | nats }}", tmp_path)


@pytest.mark.parametrize(
    "fields",
    [{"context_tokens": 256}, {"num_windows": 64}, {"provenance": PROVENANCE | {"data_fingerprint": "other"}}],
)
def test_contexts_of_several_texts_or_sizes_are_refused(fields: dict[str, Any], tmp_path: Path) -> None:
    others = [record | fields for record in context_records()]
    with pytest.raises(ValueError, match="expected context records of one text, context_tokens, .*, got 2 kinds"):
        filled([*context_records(), *others], '{{ contexts("runs").difference("rope", 128) | higher }}', tmp_path)


def test_contexts_read_in_another_way_have_another_name(tmp_path: Path) -> None:
    others = [record | {"overrides": {"alibi_beta": 4.0}} for record in context_records()]
    text = '{{ contexts("runs").difference("rope (alibi_beta=4.0)", 128) | higher }}'
    assert filled([*context_records(), *others], text, tmp_path) == "0.050\n"


def test_another_reading_of_a_variant_is_no_seed() -> None:
    read = [("as trained", "rope", 0.1), ("yarn 8", "rope, yarn 8", 0.9)]
    records = [
        recall_record("rope", 128, 0.0, comparison="t", variant="rope", seed=seed, reading=reading, name=name)
        | {"accuracy": share}
        for seed in range(3)
        for reading, name, share in read
    ]
    found = WrittenPage(records, "figures").answers("t")
    assert found.by_seed("rope", 128) == [0.1] * 3
    assert found.by_seed("rope", 128, reading="yarn 8") == [0.9] * 3
