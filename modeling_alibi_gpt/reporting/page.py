"""The pages of a report: sections of figures and tables as self-contained HTML and as Markdown."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from jinja2 import Environment
from markupsafe import Markup

from modeling_alibi_gpt.reporting.tables import Table


MAX_STEM_BYTES = 100  # two of them, a few words between, and what a temporary name adds


@dataclass(frozen=True)
class Picture:
    """A PNG, the name of its file in the folder of figures, and the words for those who cannot see it."""

    file_name: str
    png: bytes
    alt: str

    @property
    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Section:
    """One subject: a plain sentence saying what the reader sees, what it shows, and the pictures and tables of it."""

    title: str
    sentence: str
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


# No script, no link outside the page. Tables scroll inside their own box, so the page itself never does sideways.
HTML = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; --ink: #2b2b2b; --soft: #6a6a6a; --rule: #e4e1dc; --accent: #b83a08; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 56rem; background: #fff; color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .5rem; }
section { border-top: 1px solid var(--rule); margin-top: 2.5rem; padding-top: 1.75rem; }
p { margin: 0 0 1rem; max-width: 42rem; }
nav ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.findings { margin: 0 0 1rem; padding-left: 1.25rem; max-width: 42rem; }
img { display: block; max-width: 100%; height: auto; margin: 1.25rem 0; }
.scroll { overflow-x: auto; margin: 1.25rem 0; background:
  linear-gradient(to left, #fff 1.5rem, #fff0) right / 3rem 100% no-repeat local,
  linear-gradient(to left, #0002, #0000) right / .75rem 100% no-repeat scroll; }
table { border-collapse: separate; border-spacing: 0; font-size: .875rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .75rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
.word { text-align: left; white-space: normal; }
th:first-child, td:first-child { padding-left: 0; position: sticky; left: 0; background: #fff; }
tr.best td { font-weight: 700; color: var(--accent); }
.notes { margin: -.5rem 0 0; padding-left: 1.25rem; font-size: .875rem; color: var(--soft); overflow-wrap: anywhere; }
@media (max-width: 30rem) { table { font-size: .8125rem; } th, td { padding: .35rem .4rem; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<nav aria-label="Sections"><ul>
{%- for section in sections %}
<li><a href="#section-{{ loop.index }}">{{ section.title }}</a></li>
{%- endfor %}
</ul></nav>
{%- for section in sections %}
<section id="section-{{ loop.index }}">
<h2>{{ section.title }}</h2>
<p>{{ section.sentence }}</p>
{%- if section.findings %}
<ul class="findings">
{%- for finding in section.findings %}
<li>{{ finding }}</li>
{%- endfor %}
</ul>
{%- endif %}
{%- for picture in section.pictures %}
<img src="{{ picture.data_uri }}" alt="{{ picture.alt }}">
{%- endfor %}
{%- for table in section.tables %}
<div class="scroll" tabindex="0"><table>
<thead><tr>
{%- for cell in table.header %}<th scope="col"{{ table | word(loop.index0) }}>{{ cell }}</th>{% endfor -%}
</tr></thead>
<tbody>
{%- for row in table.rows %}
<tr{% if loop.index0 in table.bold_rows %} class="best"{% endif %}>
{%- for cell in row %}<td{{ table | word(loop.index0) }}>{{ cell }}</td>{% endfor -%}
</tr>
{%- endfor %}
</tbody>
</table></div>
{%- if table.footnotes %}
<ol class="notes">
{%- for note in table.footnotes %}
<li>{{ note }}</li>
{%- endfor %}
</ol>
{%- endif %}
{%- endfor %}
</section>
{%- endfor %}
</body>
</html>
"""


def render_html(title: str, sections: Sequence[Section]) -> str:
    """One page with nothing outside it: styles and pictures are inside, and every text is escaped."""
    environment = Environment(autoescape=True)
    environment.filters["word"] = _word_class
    return environment.from_string(HTML).render(title=title, sections=sections)


def render_markdown(title: str, sections: Sequence[Section], *, figures_folder: str) -> str:
    """The same in GitHub's Markdown, its pictures in ``figures_folder``, relative to the page."""
    parts = [f"# {_escape(title)}"]
    for section in sections:
        parts += [f"## {_escape(section.title)}", _escape(section.sentence)]
        if section.findings:
            parts.append("\n".join(f"- {_escape(finding)}" for finding in section.findings))
        parts += [f"![{_escape(picture.alt)}]({figures_folder}/{picture.file_name})" for picture in section.pictures]
        for table in section.tables:
            parts.append(markdown_table(table))
            if table.footnotes:
                parts.append("\n".join(f"{n}. {_escape(note)}" for n, note in enumerate(table.footnotes, start=1)))
    return "\n\n".join(parts) + "\n"


def file_stem(name: str) -> str:
    """The name of a file for ``name``: lower case, one underscore between its words, short enough for any disk."""
    stem = re.sub(r"\W+", "_", name.lower()).strip("_")
    return stem.encode("utf-8")[:MAX_STEM_BYTES].decode("utf-8", errors="ignore")


def _word_class(table: Table, column: int) -> Markup:
    return Markup(' class="word"' if column < table.num_text_columns else "")


def markdown_table(table: Table) -> str:
    lines = [table.header, [":--" if n < table.num_text_columns else "--:" for n in range(len(table.header))]]
    for index, row in enumerate(table.rows):
        cells = map(_escape, row)
        lines.append([f"**{cell}**" for cell in cells] if index in table.bold_rows else list(cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    """On one line, with the characters that Markdown would act upon marked as plain."""
    return re.sub(r"([\\\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))
