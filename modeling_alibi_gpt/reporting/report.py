"""The report: chooses, from records alone, the sections, figures and tables, and writes them. Computes nothing new."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from modeling_alibi_gpt.reporting.atomic import write_bytes, write_text
from modeling_alibi_gpt.reporting.beta_choice import describe_choice
from modeling_alibi_gpt.reporting.comparison import comparison_sections
from modeling_alibi_gpt.reporting.complete import check_comparisons
from modeling_alibi_gpt.reporting.figures import (
    beta_figure,
    bias_by_distance_figure,
    bias_figure,
    extrapolation_figure,
    position_figure,
    training_figure,
)
from modeling_alibi_gpt.reporting.milestones import milestone_sections
from modeling_alibi_gpt.reporting.page import Picture, Section, render_html, render_markdown
from modeling_alibi_gpt.reporting.records import Record, check_record
from modeling_alibi_gpt.reporting.speed import speed_sections
from modeling_alibi_gpt.reporting.tables import (
    BETA,
    beta_table,
    distinct_names,
    extrapolation_table,
    group_by,
    perplexity_table,
    provenance_table,
    trained_beta_table,
    trained_slopes_table,
    training_table,
)
from modeling_alibi_gpt.reporting.whole import write_together


# How a sweep of beta is headed, and what one of its trials is.
MODES = {
    "retrain": (f"{BETA}, trained anew", f"Each trial trains the model from scratch at one {BETA}."),
    "posthoc": (f"{BETA}, changed after training", f"Each trial evaluates one trained checkpoint at another {BETA}."),
}


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What ``scripts/report.py`` builds.

    Attributes:
        records: JSON Lines files that other scripts wrote.
        output_dir: Gets the page as HTML and as Markdown, and the folder of its figures.
        title: Heading of the page.
        page: Its file name without suffix.
        figures_folder: Where its pictures go, within ``output_dir``.
        html: Whether the page is written as HTML too.
        claims: Whether what is said of ALiBi is judged by the comparisons, in a table of verdicts.
    """

    records: list[str]
    output_dir: str
    title: str = "AlibiGPT report"
    page: str = "report"
    figures_folder: str = "figures"
    html: bool = True
    claims: bool = False


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
    """Write a page and its figures: all of them, or none where the disk is full.

    Args:
        records: of the kinds in ``RECORD_FIELDS``, in any order; kinds without records are left out.
        output_dir: Folder of the page.
        title: Heading of the page.
        page: Its file name without suffix.
        figures_folder: Where its pictures go, within ``output_dir``.
        html: Whether the page is written as HTML too.
        claims: Whether what is said of ALiBi is judged by the comparisons, in a table of verdicts.

    Returns:
        The paths written: ``html`` (null without), ``markdown`` and the list ``figures``.

    Raises:
        ValueError: there are no records, one is of an unknown kind, lacks a field of its kind or has one of another
            type, or the page or its figures would lie outside ``output_dir``.
    """
    _check_names(page, figures_folder)
    if not records:
        raise ValueError("got no records; a report needs at least one")
    for record in records:
        check_record(record)
    check_comparisons(records)
    sections = _with_figures_of_their_own(_sections(records, claims))
    output_dir = Path(output_dir)
    texts = {output_dir / f"{page}.md": render_markdown(title, sections, figures_folder=figures_folder)}
    if html:
        texts[output_dir / f"{page}.html"] = render_html(title, sections)
    pictures = (picture for section in sections for picture in section.pictures)
    figures = {output_dir / figures_folder / picture.file_name: picture.png for picture in pictures}
    write_together({**figures, **{path: text.encode("utf-8") for path, text in texts.items()}})
    return {
        "html": str(output_dir / f"{page}.html") if html else None,
        "markdown": str(output_dir / f"{page}.md"),
        "figures": [str(path) for path in figures],
    }


def _sections(records: Sequence[Record], claims: bool) -> list[Section]:
    """The sections that there are records for: comparisons, everything else by its kind, and where it comes from."""
    compared = group_by([record for record in records if "comparison" in record], _kind)
    by_kind = group_by([record for record in records if "comparison" not in record], _kind)
    others = [section for build in SECTION_BUILDERS for section in build(by_kind)]
    return [*comparison_sections(compared, claims=claims), *others, _provenance_section(records)]


def _check_names(page: str, figures_folder: str) -> None:
    """Raise a ValueError unless a page and the folder of its figures lie in the folder of the report."""
    if page in ("", ".", "..") or not page.isprintable() or re.search(r"[/\\]", page):
        raise ValueError(f"page must be a file name without a folder, got {page!r}")
    folder = PurePosixPath(figures_folder)
    is_within = folder.parts and not folder.is_absolute() and ".." not in folder.parts
    if not is_within or not figures_folder.isprintable() or "\\" in figures_folder:
        raise ValueError(f"figures_folder must be a folder within output_dir, got {figures_folder!r}")


def _with_figures_of_their_own(sections: Sequence[Section]) -> list[Section]:
    """The sections with a number behind the name of a figure that an earlier one has already."""
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


def _kind(record: Record) -> str:
    return str(record["kind"])


def _extrapolation_sections(by_kind: dict[str, list[Record]]) -> list[Section]:
    records = distinct_names(by_kind.get("extrapolation", []))
    if not records:
        return []
    newest = {(record["name"], record["protocol"], record["length_tokens"]): record for record in records}
    sentence = "A model that extrapolates stays level, or falls, to the right of the length it was trained at."
    if len(newest) < len(records):
        sentence += f" Measurements repeated: {len(records) - len(newest)}; the last one of each is shown."
    records = list(newest.values())
    alt = "Perplexity against sequence length for each model and protocol"
    drawable = any(record["error"] is None for record in records)
    pictures = [Picture("extrapolation.png", extrapolation_figure(records), alt)] if drawable else []
    sections = [Section("Perplexity against length", sentence, pictures, [extrapolation_table(records)])]
    return sections + _position_sections(records)


def _position_sections(records: Sequence[Record]) -> list[Section]:
    """Each model at its longest length without an error, from non-overlapping windows where there are such."""
    located = [record for record in records if record["error"] is None and record["nats_by_position"] is not None]
    if not located:
        return []
    located.sort(key=lambda record: (record["protocol"] == "nonoverlapping", record["length_tokens"]))
    longest = list({record["name"]: record for record in located}.values())
    sentence = (
        "How well each model predicts a token that stands this far into the sequence; "
        "a point covers the positions since the point before it."
    )
    picture = Picture("loss_by_position.png", position_figure(longest), "Nats per token against position, by model")
    return [Section("Loss by position", sentence, [picture])]


def _beta_sections(by_kind: dict[str, list[Record]]) -> list[Section]:
    sections = []
    for mode, of_mode in group_by(by_kind.get("beta_trial", []), lambda trial: trial["mode"]).items():
        if mode not in MODES:
            raise ValueError(f"got a beta_trial record of mode {mode!r}; expected one of {', '.join(MODES)}")
        studies = group_by(of_mode, lambda trial: trial["study"])
        for number, (study, trials) in enumerate(studies.items(), start=1):
            file_name = f"beta_{mode}.png" if number == 1 else f"beta_{mode}_{number}.png"
            trained = _trained_beside(mode, study, list(studies), by_kind.get("trained_beta", []))
            sections.append(_beta_section(mode, study, trials, trained, file_name))
    return sections


def _trained_beside(mode: str, study: str, studies: Sequence[str], trained: Sequence[Record]) -> list[Record]:
    """The runs in which beta was learned by the trainings of just this study: those of others say nothing of it.

    Records of old do not name their study, and belong to the only one there is.
    """
    if mode != "retrain":
        return []
    only = studies[0] if len(studies) == 1 else None
    return [record for record in trained if record.get("study", only) == study]


def _beta_section(mode: str, study: str, trials: list[Record], trained: list[Record], file_name: str) -> Section:
    (title, sentence), pictures = MODES[mode], []
    if not any(trial["state"] == "COMPLETE" for trial in trials):
        sentence += " No trial is complete yet."
    else:
        choice = describe_choice(trials)
        sentence += f" {choice}"
        if any(trial["state"] != "COMPLETE" for trial in trials):
            sentence += " Crosses at the bottom are trials that were pruned or failed."
        pictures.append(Picture(file_name, beta_figure(trials, trained), f"Perplexity against {BETA}. {choice}"))
    return Section(f"{title} ({study})", sentence, pictures, [beta_table(trials)])


def _trained_beta_sections(by_kind: dict[str, list[Record]]) -> list[Section]:
    records = by_kind.get("trained_beta", [])
    if not records:
        return []
    sentence = f"{BETA}, or every slope, learned together with the weights: what each layer ended with."
    tables = [trained_beta_table(records), trained_slopes_table(records)]
    return [Section(f"Trained {BETA}", sentence, tables=[table for table in tables if table])]


def _bias_sections(by_kind: dict[str, list[Record]]) -> list[Section]:
    records = by_kind.get("bias_matrix", [])
    if not records:
        return []
    sentence = (
        "What ALiBi adds to the attention scores: dark keys count in full, pale ones are pushed away the further "
        "they lie behind the query, and blank ones are in the future."
    )
    pictures = []
    for number, record in enumerate(records, start=1):
        file_name = "bias.png" if number == 1 else f"bias_{number}.png"
        pictures.append(Picture(file_name, bias_figure(record), f"ALiBi bias of each head of {record['name']}"))
    return [Section("Bias of each head", sentence, pictures)]


def _bias_by_distance_sections(by_kind: dict[str, list[Record]]) -> list[Section]:
    records = by_kind.get("bias_by_distance", [])
    if not records:
        return []
    sentence = (
        "What each head adds to the score of a key, by its distance: a line for each layer, dashed before training. "
        "The dotted line is the training length, beyond which nothing was learned."
    )
    pictures = []
    for number, record in enumerate(records, start=1):
        file_name = "bias_by_distance.png" if number == 1 else f"bias_by_distance_{number}.png"
        alt = f"Bias by distance of each head of {record['name']} ({record['position_method']})"
        pictures.append(Picture(file_name, bias_by_distance_figure(record), alt))
    return [Section("Bias by distance", sentence, pictures)]


def _training_sections(by_kind: dict[str, list[Record]]) -> list[Section]:
    records = by_kind.get("training", [])
    if not records:
        return []
    drawable = [record for record in records if record["loss_history"]]
    alt = "Training loss against step, by run"
    pictures = [Picture("training_loss.png", training_figure(drawable), alt)] if drawable else []
    sentence = "The loss of every run while it trained, and what it reached on the validation text."
    return [Section("Training", sentence, pictures, [training_table(records)])]


def _perplexity_sections(by_kind: dict[str, list[Record]]) -> list[Section]:
    records = by_kind.get("perplexity", [])
    if not records:
        return []
    sentence = "Each model on the text it was evaluated on, over every token, in windows of one length."
    return [Section("Perplexity", sentence, tables=[perplexity_table(distinct_names(records))])]


def _provenance_section(records: Sequence[Record]) -> Section:
    sentence = "The source, the machine and the data behind every number above."
    return Section("Provenance", sentence, tables=[provenance_table(records)])


# In the order of the page, for kinds of records that are not part of a comparison.
SECTION_BUILDERS: tuple[Callable[[dict[str, list[Record]]], list[Section]], ...] = (
    _extrapolation_sections,
    _beta_sections,
    _trained_beta_sections,
    _bias_sections,
    _bias_by_distance_sections,
    milestone_sections,
    _training_sections,
    _perplexity_sections,
    speed_sections,
)
