"""Write a report: its sections, figures and tables depend on the records alone, and nothing is measured anew."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from modeling_alibi_gpt.report.beta_choice import describe_choice
from modeling_alibi_gpt.report.bias_plots import bias_by_distance_figure, bias_figure
from modeling_alibi_gpt.report.comparison_sections import comparison_sections
from modeling_alibi_gpt.report.complete import check_page_records
from modeling_alibi_gpt.report.conclusion import Conclusion, conclude
from modeling_alibi_gpt.report.context_sections import context_sections, recall_sections
from modeling_alibi_gpt.report.extrapolation_sections import extrapolation_sections
from modeling_alibi_gpt.report.formats import BETA
from modeling_alibi_gpt.report.frames import (
    MILESTONE_PROTOCOL,
    Frames,
    by_text,
    distinct_names,
    frames,
    milestone_runs,
    named_by_seed,
    pick,
    rows_of,
    separate_studies,
)
from modeling_alibi_gpt.report.page import Picture, Section, make_section, render_html, render_markdown
from modeling_alibi_gpt.report.plots import (
    beta_figure,
    milestone_figure,
    training_figure,
)
from modeling_alibi_gpt.report.speed_plots import attention_speed_figure, drawn_speeds
from modeling_alibi_gpt.report.speed_tables import (
    attention_speed_table,
    conversion_speed_table,
    decode_speed_table,
    model_speed_table,
)
from modeling_alibi_gpt.report.tables import (
    Table,
    beta_table,
    milestone_table,
    perplexity_table,
    provenance_table,
    trained_beta_tables,
    training_table,
)
from modeling_alibi_gpt.runtime.atomic import write_together
from modeling_alibi_gpt.runtime.config import config_dataclass
from modeling_alibi_gpt.runtime.records import Record


TEMPLATE = "sections.j2"
MODES = ("retrain", "posthoc")


@config_dataclass
class ReportConfig:
    """Settings of ``alibi-gpt report``."""

    records: list[str]
    """JSON Lines files with the records of other scripts."""
    output_dir: str
    """Folder for the page, as HTML and Markdown, and its figures."""
    title: str = "AlibiGPT report"
    """Heading of the page."""
    page: str = "report"
    """File name of the page, without suffix."""
    figures_folder: str = "figures"
    """Folder of the figures, relative to ``output_dir``."""
    html: bool = True
    """Whether to write the page as HTML in addition to Markdown."""
    claims: bool = False
    """Whether to begin with a table that judges claims about ALiBi by the comparisons."""
    template: str | None = None
    """Markdown file with Jinja expressions, whose numbers are filled in from the records. Null writes every section
    that the records provide data for. A page from a template is written as Markdown only.
    """

    def __post_init__(self) -> None:
        _check_names(self.page, self.figures_folder)


def build_report(
    records: Sequence[Record],
    output_dir: str | Path,
    *,
    title: str,
    page: str = "report",
    figures_folder: str = "figures",
    html: bool = True,
    claims: bool = False,
) -> dict[str, Any]:
    """Write a page and its figures: all of them, or none if the disk is full.

    Args:
        records: Records of the kinds in ``RECORD_TYPES``, in any order. Kinds without records get no section.
        output_dir: Folder of the page.
        title, page, figures_folder, html, claims: As in ``ReportConfig``.

    Returns:
        The paths written: ``html`` (None without HTML), ``markdown`` and the list ``figures``. Also the ``conclusion``
        at the top of the page, which is empty if the page begins with verdicts.

    Raises:
        ValueError: There are no records, a record is of an unknown kind, lacks a field or has a field of the wrong
            type, a comparison is incomplete, or the page or its figures would be outside ``output_dir``.
    """
    _check_names(page, figures_folder)
    check_page_records(records)
    records = separate_studies(records)
    compared = frames(record for record in records if "comparison" in record)
    by_kind = frames(record for record in records if "comparison" not in record)
    conclusion = Conclusion() if claims else conclude(compared, by_kind)
    provenance = provenance_table([record["provenance"] for record in records])
    sections = _conclusion_sections(conclusion) + _sections(compared, by_kind, claims)
    sections = _with_figures_of_their_own([*sections, make_section(TEMPLATE, "provenance", tables=[provenance])])
    output_dir = Path(output_dir)
    markdown = render_markdown(title, sections, figures_folder=figures_folder)
    pages: dict[Path, Iterable[str]] = {output_dir / f"{page}.md": [markdown]}
    if html:
        pages[output_dir / f"{page}.html"] = render_html(title, sections)
    pictures = (picture for section in sections for picture in section.pictures)
    figures = {output_dir / figures_folder / picture.file_name: picture.drawing.png_parts() for picture in pictures}
    write_together({**figures, **{path: map(str.encode, texts) for path, texts in pages.items()}})
    return {
        "html": str(output_dir / f"{page}.html") if html else None,
        "markdown": str(output_dir / f"{page}.md"),
        "figures": [str(path) for path in figures],
        "conclusion": conclusion,
    }


def _conclusion_sections(conclusion: Conclusion) -> list[Section]:
    sentences = conclusion.sentences
    return [make_section("conclusion.j2", "conclusion", sentences=sentences)] if sentences else []


def _sections(compared: Frames, by_kind: Frames, claims: bool) -> list[Section]:
    """The sections that the records provide data for: comparisons first, then everything else by kind."""
    sections = comparison_sections(compared, claims=claims)
    sections += recall_sections(compared) if "recall" in compared else []
    for kind, build in SECTION_BUILDERS.items():
        sections += build(by_kind) if kind in by_kind else []
    return sections


def _check_names(page: str, figures_folder: str) -> None:
    """Raise a ValueError unless the page and its figures folder are inside the report folder."""
    if page in ("", ".", "..") or not page.isprintable() or re.search(r"[/\\]", page):
        raise ValueError(f"page must be a file name without a folder, got {page!r}")
    folder = PurePosixPath(figures_folder)
    is_within = folder.parts and not folder.is_absolute() and ".." not in folder.parts
    if not is_within or not figures_folder.isprintable() or "\\" in figures_folder:
        raise ValueError(f"figures_folder must be a folder within output_dir, got {figures_folder!r}")


def _with_figures_of_their_own(sections: Sequence[Section]) -> list[Section]:
    """The sections, with a number appended to figure names that are already taken."""
    taken: set[str] = set()
    numbered = []
    for section in sections:
        pictures = []
        for picture in section.pictures:
            path, number = PurePosixPath(picture.file_name), 1
            while (name := path.name if number == 1 else f"{path.stem}_{number}{path.suffix}").casefold() in taken:
                number += 1
            taken.add(name.casefold())
            pictures.append(replace(picture, file_name=name))
        numbered.append(replace(section, pictures=pictures))
    return numbered


def _beta_sections(by_kind: Frames) -> list[Section]:
    sections = []
    for mode, of_mode in by_kind["beta_trial"].groupby("mode", sort=False):
        if mode not in MODES:
            raise ValueError(f"got a beta_trial record of mode {mode!r}; expected one of {', '.join(MODES)}")
        for study, frame in of_mode.groupby("study", sort=False):
            trained = []
            if mode == "retrain" and "trained_beta" in by_kind:
                trained = rows_of(pick(by_kind["trained_beta"], study=study))
            sections.append(_beta_section(frame, trained))
    return sections


def _beta_section(frame: pd.DataFrame, trained: list[Record]) -> Section:
    """The section of a study and of its runs that learned beta. Its template macro is named after the mode."""
    is_complete = frame["state"] == "COMPLETE"
    choice, pictures = "", []
    if is_complete.any():
        choice = describe_choice(rows_of(frame))
        alt = f"Perplexity against {BETA}. {choice}"
        pictures.append(Picture(f"beta_{frame['mode'].iloc[0]}.png", beta_figure(frame, trained), alt))
    values = {"study": frame["study"].iloc[0], "choice": choice, "has_crosses": not is_complete.all()}
    return make_section(TEMPLATE, frame["mode"].iloc[0], pictures=pictures, tables=[beta_table(frame)], **values)


def _bias_sections(by_kind: Frames) -> list[Section]:
    pictures = [
        Picture("bias.png", bias_figure(row), f"ALiBi bias of each head of {row['name']}")
        for row in rows_of(by_kind["bias_matrix"])
    ]
    return [make_section(TEMPLATE, "bias", pictures=pictures)]


def _bias_by_distance_sections(by_kind: Frames) -> list[Section]:
    pictures = []
    for row in rows_of(by_kind["bias_by_distance"]):
        alt = f"Bias by distance of each head of {row['name']} ({row['position_method']})"
        pictures.append(Picture("bias_by_distance.png", bias_by_distance_figure(row), alt))
    return [make_section(TEMPLATE, "bias_by_distance", pictures=pictures)]


def _milestone_sections(by_kind: Frames) -> list[Section]:
    """One section for all trainings with milestones, and the model that they were fine-tuned from, if any."""
    frame = named_by_seed(by_kind["milestone"])
    start, runs = milestone_runs(frame)
    own = None if start is None else start["name"]
    drawn = pick(frame[(frame["name"] != own) & frame["error"].isna()], protocol=MILESTONE_PROTOCOL)
    alt = f"Perplexity against tokens of {'training' if start is None else 'fine-tuning'}, by length"
    pictures = [Picture("milestones.png", milestone_figure(frame, own), alt)] if len(drawn) else []
    tables = [milestone_table(frame)]
    return [make_section(TEMPLATE, "milestones", pictures=pictures, tables=tables, start=start, runs=runs)]


def _training_sections(by_kind: Frames) -> list[Section]:
    frame = by_kind["training"]
    drawn = frame[frame["loss_history"].map(bool)]
    alt = "Training loss against step, by run"
    pictures = [Picture("training_loss.png", training_figure(drawn), alt)] if len(drawn) else []
    return [make_section(TEMPLATE, "training", pictures=pictures, tables=[training_table(frame)])]


def _perplexity_sections(by_kind: Frames) -> list[Section]:
    return [
        make_section(TEMPLATE, "perplexity", tables=[perplexity_table(distinct_names(rows))], text=text)
        for text, rows in by_text(by_kind["perplexity"])
    ]


def _attention_speed_sections(by_kind: Frames) -> list[Section]:
    frame = by_kind["attention_speed"]
    alt = "Time of attention against length, relative to plain causal attention"
    is_drawn = len(drawn_speeds(frame)) > 0
    pictures = [Picture("attention_speed.png", attention_speed_figure(frame), alt)] if is_drawn else []
    return [make_section(TEMPLATE, "attention_speed", pictures=pictures, tables=[attention_speed_table(frame)])]


def _tables_alone(kind: str, tables: Callable[[pd.DataFrame], list[Table]]) -> Callable[[Frames], list[Section]]:
    """A section without pictures. Its template macro is named after the kind of record."""
    return lambda by_kind: [make_section(TEMPLATE, kind, tables=tables(by_kind[kind]))]


# Sections of records that are not part of a comparison, in page order.
SECTION_BUILDERS: dict[str, Callable[[Frames], list[Section]]] = {
    "extrapolation": extrapolation_sections,
    "context": context_sections,
    "recall": recall_sections,
    "beta_trial": _beta_sections,
    "trained_beta": _tables_alone("trained_beta", trained_beta_tables),
    "bias_matrix": _bias_sections,
    "bias_by_distance": _bias_by_distance_sections,
    "milestone": _milestone_sections,
    "training": _training_sections,
    "perplexity": _perplexity_sections,
    "attention_speed": _attention_speed_sections,
    "model_speed": _tables_alone("model_speed", lambda frame: [model_speed_table(frame)]),
    "conversion_speed": _tables_alone("conversion_speed", lambda frame: [conversion_speed_table(frame)]),
    "decode_speed": _tables_alone("decode_speed", lambda frame: [decode_speed_table(frame)]),
}
