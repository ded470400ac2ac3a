"""Pages that a person wrote: numbers are filled in, and a sentence that the records do not support stops the build."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from modeling_alibi_gpt.report.written_page import build_written_page
from tests.support.comparison_cases import methods


NAME = methods()[0]["comparison"]
GRID = f'{{% set g = comparison("{NAME}") %}}\n'


def page(folder: Path, text: str) -> str:
    template = folder / "page.md.j2"
    template.write_text(GRID + text, encoding="utf-8")
    place = {"page": "page", "figures_folder": "figures"}
    return Path(build_written_page(methods(), template, folder / "out", **place)["markdown"]).read_text(
        encoding="utf-8"
    )


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
    with pytest.raises(ValueError, match=r"page\.md\.j2: a sentence says '\w+' of .*, which is not shown"):
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
