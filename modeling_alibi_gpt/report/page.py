"""Render pages from templates: the sentences of a section, and sections as HTML and Markdown."""

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from modeling_alibi_gpt.report import formats, statistics
from modeling_alibi_gpt.report.comparison import best_moves
from modeling_alibi_gpt.report.drawing import Drawing
from modeling_alibi_gpt.report.statistics import Difference
from modeling_alibi_gpt.report.svg import dark_css
from modeling_alibi_gpt.report.tables import Table


MAX_STEM_BYTES = 100  # a file name holds two stems, a few words and the suffix of a temporary file
TEMPLATES = FileSystemLoader(Path(__file__).with_name("templates"))
SETTINGS: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its PNG in the figures folder, and its alt text."""

    file_name: str
    drawing: Drawing
    alt: str


@dataclass(frozen=True)
class Section:
    """A section: a description of what it shows, its findings, and its pictures and tables."""

    title: str
    sentence: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    findings: list[str] = field(default_factory=list)


def make_section(
    template: str, macro: str, *, pictures: Sequence[Picture] = (), tables: Sequence[Table] = (), **values: Any
) -> Section:
    """Make a section from a template macro, which writes the title, then sentences, then findings as list items."""
    title, *lines = render_lines(template, macro, **values)
    findings = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    sentence = " ".join(line for line in lines if not line.startswith("- "))
    return Section(title, sentence, pictures, tables, findings)


def render_lines(template: str, macro: str, **values: Any) -> list[str]:
    """The non-empty lines that a macro writes. A value that the macro does not declare raises an error."""
    text = getattr(_SENTENCES.get_template(template).module, macro)(**values)
    return [line.strip() for line in str(text).splitlines() if line.strip()]


def render_html(title: str, sections: Sequence[Section]) -> Iterator[str]:
    """Render a self-contained HTML page: styles and pictures are inline, and all text is escaped.

    Yields the page in parts, because all pictures of a long page at once would fill the memory.
    """
    return _PAGES.get_template("page.html").generate(title=title, sections=sections)


def render_markdown(title: str, sections: Sequence[Section], *, figures_folder: str) -> str:
    """Render a page in GitHub Markdown, with its pictures in ``figures_folder``, relative to the page."""
    page = _PAGES.get_template("page.md").render(title=title, sections=sections, figures_folder=figures_folder)
    return page.strip() + "\n"


def markdown_table(table: Table) -> str:
    lines = [table.header, [":--" if n < table.num_text_columns else "--:" for n in range(len(table.header))]]
    for index, row in enumerate(table.rows):
        cells = map(_escape, row)
        lines.append([f"**{cell}**" for cell in cells] if index in table.bold_rows else list(cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def html_cells(row: Sequence[str], num_text_columns: int) -> str:
    """The cells of a row of a table, escaped: one text a row, where a template would hold several a cell."""
    words = (f'<td class="word">{html.escape(cell)}</td>' for cell in row[:num_text_columns])
    numbers = (f"<td>{html.escape(cell)}</td>" for cell in row[num_text_columns:])
    return "".join([*words, *numbers])


def file_stem(name: str) -> str:
    """A file name for ``name``: lower case, words joined by underscores, short enough for any file system."""
    stem = re.sub(r"\W+", "_", name.lower()).strip("_")
    return stem.encode("utf-8")[:MAX_STEM_BYTES].decode("utf-8", errors="ignore")


def _escape(text: str) -> str:
    """Join the text into one line and escape the characters that Markdown interprets."""
    return re.sub(r"([\\\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))


def _on_one_line(value: Any) -> Any:
    """Replace line breaks in a value, because templates are line-based."""
    return " ".join(value.splitlines()) if isinstance(value, str) else value


def _by_sign(differences: dict[Any, Difference | None]) -> list[tuple[str, dict[str, Difference | None]]]:
    """Group named differences by sign, without empty groups."""
    words: dict[int | None, str] = {-1: "lower", 0: "no different", 1: "higher", None: "cannot be read"}
    groups: dict[str, dict[str, Difference | None]] = {word: {} for word in words.values()}
    for key, difference in differences.items():
        name = key if isinstance(key, str) else formats.format_ratio(key)
        groups[words[None if difference is None else difference.sign]][name] = difference
    return [(word, members) for word, members in groups.items() if members]


_SENTENCES = Environment(loader=TEMPLATES, finalize=_on_one_line, **SETTINGS)
_SENTENCES.globals.update(
    {name: value for name, value in vars(statistics).items() if name.endswith(("_NATS", "_SEEDS", "_SHARE"))}
)
_SENTENCES.filters |= {
    "best_moves": best_moves,
    "by_sign": _by_sign,
    "change": formats.format_change,
    "count": formats.format_count,
    "document": lambda path: path.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".txt"),
    "mean": formats.format_mean,
    "of": lambda key, mapping: mapping[key],
    "opening": lambda text: text[:1].upper() + text[1:],
    "perplexity": formats.format_perplexity,
    "protocol": formats.protocol_name,
    "ratio": formats.format_ratio,
    "ratio3": lambda value: formats.format_ratio(value, 3),
    "span": formats.format_range,
}
_PAGES = Environment(loader=TEMPLATES, autoescape=select_autoescape(["html"]), **SETTINGS)
_PAGES.globals["dark_figures"] = dark_css()
_PAGES.filters |= {"cells": html_cells, "plain": _escape, "table": markdown_table}
