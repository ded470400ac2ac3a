"""Hand-written pages whose numbers are filled in from records and whose claims are checked against them.

The template is Markdown with Jinja expressions. ``{{ g.change("rope", "sliding", 4096) | higher }}`` writes a number
and raises a ValueError unless the records show a rise, so a sentence cannot contradict the records. Paragraphs are
rewrapped after the numbers are filled in.
"""

import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import pandas as pd
from jinja2 import Environment, TemplateError

from modeling_alibi_gpt.report import formats, result_plots
from modeling_alibi_gpt.report.beta_budgets import Estimate
from modeling_alibi_gpt.report.budget_sections import Series, budget_figure, series_of
from modeling_alibi_gpt.report.comparison import Comparison
from modeling_alibi_gpt.report.comparison_sections import basis
from modeling_alibi_gpt.report.complete import check_page_records
from modeling_alibi_gpt.report.context_tables import SIZES, context_difference, distinct_contexts, with_share
from modeling_alibi_gpt.report.drawing import Drawing
from modeling_alibi_gpt.report.frames import by_text, frames, pick, rows_of
from modeling_alibi_gpt.report.page import SETTINGS
from modeling_alibi_gpt.report.statistics import Difference
from modeling_alibi_gpt.runtime.atomic import write_together
from modeling_alibi_gpt.runtime.record_types import AS_TRAINED
from modeling_alibi_gpt.runtime.records import Record


LINE_CHARACTERS = 120
SUBJECTS = (
    "comparison",
    "basis",
    "rows",
    "answers",
    "budgets",
    "contexts",
    "figure",
)  # what a template may call
WRAPPING: Any = {"break_long_words": False, "break_on_hyphens": False}
FIGURES: dict[str, Callable[..., Drawing]] = {
    "lengths": result_plots.length_figure,
    "rivals": result_plots.rivals_figure,
    "trained_betas": result_plots.trained_betas_figure,
    "changed_betas": result_plots.changed_betas_figure,
    "budgets": budget_figure,
    "distant": result_plots.distant_figure,
    "recall": result_plots.recall_figure,
}


class Answers:
    """The share of right answers to a task by variant, length and depth; depth 0 is the start of the text.

    In a task without depths, it is the share of right tokens.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = with_share(frame)
        self.lengths: list[int] = sorted(frame["length_tokens"].unique().tolist())

    def by_seed(self, variant: str, length: int, depth: float | None = 0.0, reading: str = AS_TRAINED) -> list[float]:
        """The share of each seed; empty if the variant cannot be evaluated at the length.

        ``depth`` is None if the task has no depths.
        """
        found = pick(self.frame, variant=variant, length_tokens=length, reading=reading)
        found = found[found["depth"].isna() if depth is None else found["depth"] == depth]
        return found.loc[found["error"].isna(), "share"].tolist()

    def oldest(self, variants: Sequence[str]) -> dict[str, tuple[str, dict[int, list[float]]]]:
        """The position method of each variant, and its accuracies by length for the item furthest back."""
        curves = {}
        for variant in variants:
            method = str(pick(self.frame, variant=variant)["position_method"].iloc[0])
            shares = {length: self.by_seed(variant, length) for length in self.lengths}
            curves[variant] = method, {length: each for length, each in shares.items() if each}
        return curves


class Contexts:
    """Loss with a part of the context minus loss with all of it, by name of the models without their seeds."""

    def __init__(self, frame: pd.DataFrame) -> None:
        groups = [group for _, of_text in by_text(frame) for _, group in of_text.groupby(SIZES)]
        if len(groups) > 1:
            raise ValueError(f"expected context records of one text, {', '.join(SIZES)}, got {len(groups)} kinds")
        self.frame = distinct_contexts(frame)

    def difference(self, name: str, kept_tokens: int, reading: str = "cut") -> Difference | None:
        """Loss with the nearest ``kept_tokens`` of context minus loss with all of it; None if a model failed."""
        of_name = _found(pick(self.frame, name=name), f"context with {name}")
        rows = rows_of(_found(pick(of_name, reading=reading, kept_tokens=kept_tokens), f"{kept_tokens} tokens kept"))
        return context_difference(rows, of_name)

    def curves(self, names: Sequence[str], reading: str) -> dict[str, tuple[str, dict[int, Difference | None]]]:
        """The position method of each name, and its differences by number of kept tokens."""
        found = {}
        for name in names:
            of_name = _found(pick(self.frame, name=name), f"context with {name}")
            kept = sorted(int(k) for k in pick(of_name, reading=reading)["kept_tokens"].unique())
            by_kept = {k: self.difference(name, k, reading) for k in kept}
            found[name] = str(of_name["position_method"].iloc[0]), by_kept
        return found


def build_written_page(
    records: Sequence[Record], template: str | Path, output_dir: str | Path, *, page: str, figures_folder: str
) -> dict[str, Any]:
    """Fill a template from records, and write the page and its figures: all of them, or none if the disk is full.

    Args:
        records: Records of the kinds in ``RECORD_TYPES``.
        template: Markdown file with Jinja expressions, which may use the methods of ``WrittenPage``.
        output_dir: Folder of the page.
        page: File name of the page, without suffix.
        figures_folder: Folder of the figures, relative to ``output_dir``.

    Returns:
        The paths written: ``markdown``, the list ``figures``, and ``html``, which is None.

    Raises:
        ValueError: A record is not valid for its kind, or the template uses or claims something that the records do
            not show.
    """
    check_page_records(records)
    written = WrittenPage(records, figures_folder)
    path = Path(output_dir) / f"{page}.md"
    text = written.render(template)
    figures = {Path(output_dir) / figures_folder / name: [svg] for name, svg in written.pictures.items()}
    write_together({**figures, path: [text.encode("utf-8")]})
    return {"html": None, "markdown": str(path), "figures": [str(figure) for figure in figures]}


class WrittenPage:
    """The functions that a template may call.

    Attributes:
        pictures: SVG files of the figures that the template uses, by file name.
    """

    def __init__(self, records: Sequence[Record], figures_folder: str) -> None:
        self.pictures: dict[str, bytes] = {}
        self._figures_folder = figures_folder
        self._compared = frames(record for record in records if "comparison" in record)
        self._others = frames(record for record in records if "comparison" not in record)

    def render(self, template: str | Path) -> str:
        """Render the page as Markdown.

        Raises:
            ValueError: The template uses something that the records lack, or claims something that they do not show.
        """
        environment = Environment(**SETTINGS)
        environment.filters |= FILTERS
        names = {name: getattr(self, name) for name in SUBJECTS}
        try:
            text = environment.from_string(Path(template).read_text(encoding="utf-8")).render(names)
        except (TemplateError, KeyError, ValueError) as error:
            raise ValueError(f"{template}: {error}") from error
        return "\n\n".join(map(_wrapped, text.strip().split("\n\n"))) + "\n"

    def comparison(self, name: str) -> Comparison:
        """The comparison with this name."""
        return Comparison(_found(pick(self._compared["comparison"], comparison=name), name))

    def basis(self, name: str) -> str:
        """The basis of a comparison: parameters, training tokens per parameter, seeds and evaluated tokens."""
        trainings = pick(self._compared["training"], comparison=name)
        found = basis(self.comparison(name), trainings, pick(self._compared["extrapolation"], comparison=name))
        return f"{trainings['num_parameters'].median() / 1e6:.1f} M parameters, {found}"

    def rows(self, kind: str, **values: Any) -> list[Record]:
        """The records of a kind with these values, which are of a comparison only if it is named; at least one."""
        among = self._compared if "comparison" in values else self._others
        return rows_of(_found(pick(among[kind], **values), f"{kind} with {values}"))

    def answers(self, name: str) -> Answers:
        """Accuracies of a comparison on a task."""
        return Answers(_found(pick(self._compared["recall"], comparison=name), name))

    def budgets(self, name: str) -> Series:
        """The best beta and its worth at each training budget of a series."""
        found = series_of(name, self._compared)
        if found is None:
            raise ValueError(f"no budgets of {name}")
        return found

    def contexts(self, folder: str) -> Contexts:
        """Loss by amount of context, of the models in this folder."""
        frame = self._others["context"]
        return Contexts(_found(frame[frame["model"].map(lambda model: str(PurePath(model).parent)) == folder], folder))

    def figure(self, kind: str, file_name: str, alt: str, *subjects: Any) -> str:
        """Draw a figure of ``FIGURES`` and return its Markdown."""
        self.pictures[file_name] = FIGURES[kind](*subjects).svg_file
        return f"![{alt}]({self._figures_folder}/{file_name})"


def _checked(
    word: str, holds: Callable[[Difference], bool], *, signed: bool = True
) -> Callable[[Difference | None], str]:
    """A filter that writes a difference or its size, and raises a ValueError if ``word`` does not describe it."""

    def write(difference: Difference | None) -> str:
        if difference is None or not holds(difference):
            raise ValueError(
                f"a sentence says {word!r} of {formats.format_change(difference)}, but the records do not show it"
            )
        return formats.format_mean(difference) if signed else f"{abs(difference.mean):.3f}"

    return write


def _wrapped(block: str) -> str:
    """Wrap a paragraph to ``LINE_CHARACTERS``; headings, tables, lists and figures are left as they are."""
    return block if block.startswith(("#", "|", "!", "-")) else textwrap.fill(block, LINE_CHARACTERS, **WRAPPING)


def _gain(*, is_shown: bool) -> Callable[[Estimate], str]:
    """A filter that writes a gain, and raises a ValueError unless its interval is above 0, or else reaches 0."""

    def write(gain: Estimate) -> str:
        if (gain.ends[0] > 0) != is_shown:
            word, (low, high) = "a gain" if is_shown else "no gain", gain.ends
            raise ValueError(f"a sentence speaks of {word}, but the interval is {low:.4f} to {high:.4f} nats")
        return f"{gain.value:.3f}"

    return write


def _with_interval(estimate: Estimate) -> str:
    """``14 (1.5 to 18)``: a beta, to two digits."""
    value, low, high = (formats.format_ratio(each, 2) for each in (estimate.value, *estimate.ends))
    return f"{value} ({low} to {high})"


def _percent(shares: Sequence[float]) -> str:
    """The mean, rounded as in a table."""
    if not shares:
        raise ValueError("there are no accuracies to write: expected at least one seed")
    return f"{100 * float(formats.format_share(statistics.fmean(shares))):.0f} %"


def _all_below(shares: Sequence[float], others: Sequence[float]) -> Sequence[float]:
    """The shares, if each of them is below all of the others."""
    if not shares or not others or max(shares) >= min(others):
        raise ValueError(f"a sentence says that {list(shares)} are below {list(others)}, but they are not")
    return shares


def _found(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    if frame.empty:
        raise ValueError(f"no record of {what}")
    return frame


FILTERS: Mapping[str, Callable[..., Any]] = {
    "above": _checked("above", lambda difference: difference.sign > 0),
    "below": _checked("below", lambda difference: difference.sign < 0),
    "higher": _checked("higher", lambda difference: difference.sign > 0, signed=False),
    "lower": _checked("lower", lambda difference: difference.sign < 0, signed=False),
    "level": _checked("level", lambda difference: difference.is_level),
    "undecided": _checked("undecided", lambda difference: difference.sign == 0),
    "with_interval": _with_interval,
    "gain": _gain(is_shown=True),
    "no_gain": _gain(is_shown=False),
    "nats": formats.format_mean,
    "change": formats.format_change,
    "ratio": formats.format_ratio,
    "span": formats.format_range,
    "perplexity": formats.format_perplexity,
    "percent": _percent,
    "all_below": _all_below,
    "times": lambda value: f"{value:.2f}",
    "unsigned": lambda value: f"{value:.3f}",
}
