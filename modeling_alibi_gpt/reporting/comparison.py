"""The sections of a report about comparisons: what was run, curves, differences with their spread, and findings."""

import math
from collections.abc import Sequence

from modeling_alibi_gpt.reporting.beta_comparison import beta_sections
from modeling_alibi_gpt.reporting.claims import claims_section
from modeling_alibi_gpt.reporting.figures import (
    bias_by_distance_figure,
    extrapolation_figure,
    position_figure,
    training_figure,
)
from modeling_alibi_gpt.reporting.findings import (
    extrapolation_findings,
    learned_bias_findings,
    noise_rule,
    published_findings,
    scaling_findings,
)
from modeling_alibi_gpt.reporting.grid import AS_TRAINED, Grid
from modeling_alibi_gpt.reporting.page import Picture, Section, file_stem
from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.tables import (
    differences_table,
    extrapolation_table,
    format_count,
    format_range,
    group_by,
)


def comparison_sections(by_kind: dict[str, list[Record]], *, claims: bool = False) -> list[Section]:
    """For each comparison its setting and the sections that its variants call for; what a paper found.

    Args:
        by_kind: Records of comparisons, by kind.
        claims: Whether a table of verdicts on what is said of ALiBi comes first.
    """
    groups = group_by(by_kind.get("comparison", []), lambda record: record["comparison"])
    grids = [Grid(records) for records in groups.values()]
    sections = claims_section(grids, by_kind.get("training", [])) if claims else []
    of_methods = []
    for grid in grids:
        of_comparison = {
            kind: [record for record in group if record.get("comparison") == grid.name]
            for kind, group in by_kind.items()
        }
        methods, betas = grid.split()
        sections.append(_setting_section(grid, methods, of_comparison))
        if methods is not None:
            of_methods.append(methods)
            sections += _method_sections(methods, of_comparison)
        if betas is not None:
            figure = file_stem(grid.name) + ("_beta" if methods is not None else "")
            sections += beta_sections(betas, of_comparison.get("trained_beta", []), figure)
    return sections + _published_sections(of_methods, by_kind.get("published", []))


def _setting_section(grid: Grid, methods: Grid | None, by_kind: dict[str, list[Record]]) -> Section:
    training, rows = by_kind["training"], by_kind["extrapolation"]
    first = training[0]
    (num_tokens,) = {row["num_tokens"] for row in rows if row["num_tokens"]}
    corpus = by_kind["corpus"][0]
    num_seeds, longest = len(grid.records[0]["seeds"]), grid.lengths[-1]
    sentence = (
        f"{len(grid.variants)} variants, {num_seeds} {'seed' if num_seeds == 1 else 'seeds'} each: "
        f"{format_range(record['num_parameters'] / 1e6 for record in training)} million parameters, "
        f"{first['num_train_tokens'] / 1e6:.2f} million tokens of training at "
        f"{format_count(first['train_length_tokens'])} tokens a sequence in "
        f"{'bfloat16' if first['bf16'] else 'float32'}. Every length is read over the same {format_count(num_tokens)} "
        f"tokens of validation text, {math.ceil(num_tokens / longest)} windows of {format_count(longest)}. Runs with "
        f"one seed saw the same text in the same order. {noise_rule(grid)} Learned from "
        f"{corpus['num_bytes'] / 1e6:.1f} MB of text: {', '.join(map(_title, corpus['documents']))}."
    )
    pictures = []
    # The curves of betas lie one upon another.
    ran = [] if methods is None else [record for record in training if record["variant"] in methods.variants]
    drawn = [record for record in ran if record["seed"] == first["seed"] and record["loss_history"]]
    if drawn:
        alt = f"Training loss against step of {grid.name}, first seed"
        pictures.append(Picture(f"{file_stem(grid.name)}_training.png", training_figure(drawn), alt))
    return Section(_capital(grid.name), sentence, pictures)


def _method_sections(grid: Grid, by_kind: dict[str, list[Record]]) -> list[Section]:
    stem, where = file_stem(grid.name), grid.corpus
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
            "How well a token is predicted that stands this far into a window of the longest length, first seed; a "
            "point covers the positions since the point before it, and points of few tokens are left out.",
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
                extrapolation_figure([r | {"name": r["reading"]} for r in records if r["variant"] == variant]),
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
    drawn = [
        row
        for row in rows
        if (row["seed"], row["reading"], row["protocol"]) == (seed, AS_TRAINED, "nonoverlapping")
        if row["length_tokens"] == grid.lengths[-1] and row["error"] is None and row["variant"] in grid.variants
    ]
    return Picture(f"{stem}_positions.png", position_figure(drawn), "Nats per token against position, by method")


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
            f"{file_stem(grid.name)}_bias_{file_stem(record['variant'])}.png",
            bias_by_distance_figure(record),
            f"Bias by distance of each head of {record['variant']}",
        )
        for record in drawn
    ]
    sentence = (
        f"What {', '.join(record['variant'] for record in drawn)}, in this order, add to the attention score, by "
        "head, first seed: a line for each layer that has its own, dashed before training, shifted to 0 at the query "
        "itself. Keys right of the dotted line were further away than any in training."
    )
    return [
        Section(
            f"What was learned of distance, {grid.corpus}", sentence, pictures, findings=learned_bias_findings(drawn)
        )
    ]


def _title(document: str) -> str:
    return document.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".txt")


def _capital(name: str) -> str:
    return name[0].upper() + name[1:]
