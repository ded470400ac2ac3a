"""The sections of a report about comparisons: what was run, curves, differences with their spread, and findings."""

import re
from collections.abc import Sequence

from matplotlib.figure import Figure

from modeling_alibi_gpt.reporting.claims import claims_section
from modeling_alibi_gpt.reporting.drawing import (
    Line,
    as_png,
    draw_lines,
    log2_axis,
    name_lines,
    new_axes,
    perplexity_axis,
)
from modeling_alibi_gpt.reporting.figures import (
    bias_by_distance_figure,
    extrapolation_figure,
    position_figure,
    training_figure,
)
from modeling_alibi_gpt.reporting.findings import (
    best_beta,
    beta_curve,
    beta_findings,
    extrapolation_findings,
    learned_bias_findings,
    noise_rule,
    published_findings,
    scaling_findings,
)
from modeling_alibi_gpt.reporting.grid import AS_TRAINED, Grid, with_minus
from modeling_alibi_gpt.reporting.page import Picture, Section
from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.tables import (
    BETA,
    NOTHING,
    Table,
    alibi_first,
    describe_protocol,
    extrapolation_table,
    format_count,
    format_perplexity,
    format_ratio,
    group_by,
    protocol_name,
    trained_beta_table,
    trained_slopes_table,
)


def comparison_sections(by_kind: dict[str, list[Record]]) -> list[Section]:
    """What holds; for each comparison its setting and the sections that its variants call for; what a paper found."""
    groups = group_by(by_kind.get("comparison", []), lambda record: record["comparison"])
    grids = [Grid(records) for records in groups.values()]
    sections = claims_section(grids, by_kind.get("training", []))
    for grid in grids:
        of_comparison = {
            kind: [record for record in group if record.get("comparison") == grid.name]
            for kind, group in by_kind.items()
        }
        sections.append(_setting_section(grid, of_comparison))
        if grid.is_sweep:
            sections += _beta_sections(grid, of_comparison.get("trained_beta", []))
        else:
            sections += _method_sections(grid, of_comparison)
    return sections + _published_sections([grid for grid in grids if not grid.is_sweep], by_kind.get("published", []))


def differences_table(grid: Grid, records: Sequence[Record]) -> Table:
    """Nats above the reference as trained, one row a name and protocol, one column a length.

    A cell holds the mean over seeds and the standard deviation of the seeds' differences.
    """
    rows = []
    others = [record for record in alibi_first(records) if record["name"] != grid.reference]
    for group in group_by(others, lambda record: (record["name"], record["protocol"])).values():
        by_length = {record["length_tokens"]: record for record in group}
        cells = [_difference(by_length[length]) for length in grid.lengths]
        rows.append([group[0]["name"], describe_protocol(group), *cells])
    return Table(["nats above " + grid.reference, "protocol", *map(format_count, grid.lengths)], rows, 2)


def beta_comparison_table(grid: Grid, protocol: str) -> Table:
    """One row a beta; perplexity of each kind of slopes at each length, the best of a column marked with a star."""
    columns = [
        (kind, length, after)
        for kind, after in (("geometric", False), ("uniform", False), ("geometric", True))
        for length in grid.lengths
    ]
    curves = [beta_curve(grid, kind, protocol, length, after_training=after) for kind, length, after in columns]
    betas = sorted({beta for curve in curves for beta in curve})
    rows = []
    for beta in betas:
        cells = [format_perplexity(curve[beta]["perplexity"]) if beta in curve else NOTHING for curve in curves]
        best = [beta == best_beta(curve) for curve in curves]
        rows.append([format_ratio(beta), *(f"{c} *" if star else c for c, star in zip(cells, best, strict=True))])
    header = [f"{kind if not after else 'set after training'}, {format_count(n)}" for kind, n, after in columns]
    return Table([BETA, *header], rows)


@as_png
def beta_comparison_figure(grid: Grid, protocol: str) -> Figure:
    """Perplexity against beta at the shortest (solid) and the longest length (dashed) of each kind of slopes."""
    figure, axes = new_axes(4.4)
    kinds = (("geometric", False, "alibi"), ("uniform", False, "sinusoidal"), ("geometric", True, "none"))
    lines = []
    for kind, after, colour in kinds:
        for length in (grid.lengths[0], grid.lengths[-1]):
            curve = beta_curve(grid, kind, protocol, length, after_training=after)
            name = f"{'set after training' if after else kind}, read at {format_count(length)} tokens"
            lines.append(Line(name, colour, list(curve), [record["perplexity"] for record in curve.values()]))
    log2_axis(axes, [x for line in lines for x in line.xs], format_ratio)
    perplexity_axis(axes, [y for line in lines for y in line.ys])
    axes.set_xlabel(f"{BETA} (log scale)")
    draw_lines(axes, lines)
    name_lines(axes, lines)
    return figure


def _setting_section(grid: Grid, by_kind: dict[str, list[Record]]) -> Section:
    training, rows = by_kind["training"], by_kind["extrapolation"]
    parameters = sorted({record["num_parameters"] for record in training})
    first = training[0]
    (num_tokens,) = {row["num_tokens"] for row in rows if row["num_tokens"]}
    corpus = by_kind["corpus"][0]
    sentence = (
        f"{len(grid.variants)} variants, {len(grid.records[0]['seeds'])} seeds each: {parameters[0] / 1e6:.2f} to "
        f"{parameters[-1] / 1e6:.2f} million parameters, {first['num_train_tokens'] / 1e6:.2f} million tokens of "
        f"training at {format_count(first['train_length_tokens'])} tokens a sequence in "
        f"{'bfloat16' if first['bf16'] else 'float32'}, read over the same {format_count(num_tokens)} tokens of "
        f"validation text at every length. Runs with one seed saw the same text in the same order. "
        f"{noise_rule(len(grid.records[0]['seeds']))} Learned from {corpus['num_documents']} documents, "
        f"{corpus['num_bytes'] / 1e6:.1f} MB: {', '.join(map(_title, corpus['documents']))}."
    )
    drawn = [record for record in training if record["seed"] == first["seed"]]
    alt = f"Training loss against step of {grid.name}, first seed"
    return Section(
        _capital(grid.name), sentence, [Picture(f"{_stem(grid.name)}_training.png", training_figure(drawn), alt)]
    )


def _method_sections(grid: Grid, by_kind: dict[str, list[Record]]) -> list[Section]:
    stem, where = _stem(grid.name), grid.corpus
    figure = Picture(f"{stem}.png", extrapolation_figure(grid.as_trained), f"Perplexity against length, {grid.name}")
    positions = _positions_picture(stem, grid, by_kind["extrapolation"])
    sections = [
        Section(
            f"Length extrapolation, {where}",
            f"Every method as it was trained, at 1 to {grid.lengths[-1] // grid.lengths[0]} training lengths; "
            "perplexities are means over seeds.",
            [figure],
            [extrapolation_table(grid.as_trained), differences_table(grid, grid.as_trained)],
            extrapolation_findings(grid),
        ),
        Section(
            f"Loss by position, {where}",
            "How well a token is predicted that stands this far into a window of the longest length, first seed.",
            [positions],
        ),
    ]
    sections += _learned_bias_section(grid, by_kind.get("bias_by_distance", []))
    scaled = [variant for variant in grid.variants if len(grid.readings(variant)) > 1]
    if scaled:
        records = [record for record in grid.records if record["variant"] in scaled]
        pictures = [
            Picture(
                f"{stem}_{variant}_scaling.png",
                extrapolation_figure([record for record in records if record["variant"] == variant]),
                f"Perplexity against length of {variant}, as trained and scaled at inference",
            )
            for variant in scaled
        ]
        sentence = (
            "The same trained models, read with flatter slopes or stretched rotations and no training in between."
        )
        tables = [extrapolation_table(records), differences_table(grid, records)]
        sections.append(Section(f"Scaling at inference, {where}", sentence, pictures, tables, scaling_findings(grid)))
    return sections


def _beta_sections(grid: Grid, trained: Sequence[Record]) -> list[Section]:
    picture = Picture(f"{_stem(grid.name)}.png", beta_comparison_figure(grid, "sliding"), f"Perplexity against {BETA}")
    learned = [record for record in grid.as_trained if "alibi_trainable" in record["fields"]]
    tables = [
        *(beta_comparison_table(grid, protocol) for protocol in grid.protocols),
        differences_table(grid, learned),
    ]
    sentence = (
        f"A training for every {BETA}, for the paper's geometric slopes and for one slope in all heads; one trained "
        f"model given other values of {BETA} afterwards; and {BETA} or the slopes learned. The figure and the "
        f"findings are of sliding windows; a star marks the best of a column, the tables are of "
        f"{' and of '.join(map(protocol_name, grid.protocols))} windows."
    )
    sections = [Section(f"Perplexity against {BETA}", sentence, [picture], tables, beta_findings(grid))]
    if trained:
        tables = [table for table in (trained_beta_table(trained), trained_slopes_table(trained)) if table]
        sentence = (
            "What each layer ended with where it was learned, and the perplexity on the validation text of training. "
            f"The {BETA} of layers starts at 1, slopes start at those of {BETA} 1."
        )
        sections.append(Section(f"Learned {BETA} and slopes", sentence, tables=tables))
    return sections


def _published_sections(grids: Sequence[Grid], published: Sequence[Record]) -> list[Section]:
    if not published or not grids:
        return []
    sentence = (
        f"What {published[0]['provenance']['source']} found on WikiText-103, with 247 million parameters and 205 "
        f"epochs at 512 tokens, beside the far smaller models of {' and '.join(grid.name for grid in grids)}. "
        "Perplexities do not compare, directions do."
    )
    findings = published_findings(grids, published)
    return [Section("Beside the paper", sentence, [], [extrapolation_table(published)], findings)]


def _positions_picture(stem: str, grid: Grid, rows: Sequence[Record]) -> Picture:
    seed = grid.records[0]["seeds"][0]
    chosen = [
        row
        for row in rows
        if row["seed"] == seed and row["reading"] == AS_TRAINED and row["protocol"] == "nonoverlapping"
        if row["error"] is None
    ]
    longest = list({row["name"]: row for row in sorted(chosen, key=lambda row: row["length_tokens"])}.values())
    return Picture(f"{stem}_positions.png", position_figure(longest), "Nats per token against position, by method")


def _difference(record: Record) -> str:
    if record["error"] is not None:
        return NOTHING
    spread = "" if record["difference_nats_sd"] is None else f" \N{PLUS-MINUS SIGN} {record['difference_nats_sd']:.3f}"
    return with_minus(f"{record['difference_nats']:+.3f}{spread}")


def _learned_bias_section(grid: Grid, records: Sequence[Record]) -> list[Section]:
    """The first seed's bias by distance of every method that learns one."""
    first_seed = min((record["seed"] for record in records), default=None)
    drawn = [
        record for record in records if record["seed"] == first_seed and record["bias_before"] != record["bias_after"]
    ]
    if not drawn:
        return []
    pictures = [
        Picture(
            f"{_stem(grid.name)}_bias_{_stem(record['variant'])}.png",
            bias_by_distance_figure(record),
            f"Bias by distance of each head of {record['variant']}",
        )
        for record in drawn
    ]
    sentence = (
        f"The bias of {', '.join(record['variant'] for record in drawn)}, in this order, by head: a line for each "
        "layer that has its own, dashed before training. Right of the dotted line nothing was learned."
    )
    return [
        Section(
            f"What was learned of distance, {grid.corpus}", sentence, pictures, findings=learned_bias_findings(drawn)
        )
    ]


def _stem(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def _title(document: str) -> str:
    return document.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".txt")


def _capital(name: str) -> str:
    return name[0].upper() + name[1:]
