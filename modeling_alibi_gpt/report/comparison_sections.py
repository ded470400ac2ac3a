"""The sections of a report about comparisons: verdicts, settings, curves, differences and published results."""

import math
from collections.abc import Sequence

import pandas as pd

from modeling_alibi_gpt.report.bias_plots import bias_by_distance_figure
from modeling_alibi_gpt.report.budget_sections import budget_section
from modeling_alibi_gpt.report.comparison import Comparison
from modeling_alibi_gpt.report.formats import BETA
from modeling_alibi_gpt.report.frames import Frames, pick, rows_of
from modeling_alibi_gpt.report.page import Picture, Section, file_stem, make_section, render_lines
from modeling_alibi_gpt.report.plots import (
    beta_comparison_figure,
    difference_figure,
    extrapolation_figure,
    position_figure,
    training_figure,
)
from modeling_alibi_gpt.report.screen import is_screen, screen_tables, screened
from modeling_alibi_gpt.report.statistics import Difference, Verdict, within_a_model
from modeling_alibi_gpt.report.tables import (
    Table,
    beta_comparison_table,
    beta_curves,
    differences_table,
    extrapolation_table,
    of_columns,
    trained_beta_tables,
)
from modeling_alibi_gpt.report.verdicts import BETA_CLAIMS, METHOD_CLAIMS
from modeling_alibi_gpt.runtime.record_types import AS_TRAINED
from modeling_alibi_gpt.runtime.records import Record


TEMPLATE = "comparison.j2"
BASIS_KINDS = ("training", "extrapolation")


def comparison_sections(by_kind: Frames, *, claims: bool = False) -> list[Section]:
    """The settings of each comparison and the sections that its variants call for, then published results.

    Args:
        by_kind: Records of comparisons, by kind.
        claims: Whether to begin with a table of verdicts on claims about ALiBi.
    """
    of_budgets, covered = budget_section(by_kind) if "comparison" in by_kind else ([], [])
    groups = by_kind["comparison"].groupby("comparison", sort=False) if "comparison" in by_kind else []
    grids = [Comparison(frame) for name, frame in groups if name not in covered]
    judged = [grid for grid in grids if not is_screen(grid)]
    sections = claims_section(judged, by_kind) if claims and judged else []
    sections += of_budgets
    of_methods = []
    for grid in grids:
        own = {kind: pick(frame, comparison=grid.name) for kind, frame in by_kind.items()}
        if is_screen(grid):
            sections += [_setting_section(grid, None, own), _screen_section(grid)]
            continue
        methods, betas = grid.split()
        sections.append(_setting_section(grid, methods, own))
        if methods is not None:
            of_methods.append(methods)
            sections += _method_sections(methods, own)
        if betas is not None:
            figure = file_stem(grid.name) + ("_beta" if methods is not None else "")
            sections += _beta_sections(betas, own.get("trained_beta"), grid.learned, figure)
    return sections + _published_sections(of_methods, by_kind.get("published"))


def claims_section(grids: Sequence[Comparison], by_kind: Frames) -> list[Section]:
    """One table with a row for every claim that at least one comparison can test.

    Each verdict comes with the training tokens per parameter, the number of seeds and the number of evaluated tokens.
    """
    found = judged_claims(grids)
    if found.empty:
        return []
    trainings = by_kind["training"][by_kind["training"]["comparison"].isin([grid.name for grid in grids])]
    claims = found.groupby("claim", sort=False)
    bases = {grid.name: basis(grid, *(pick(by_kind[k], comparison=grid.name) for k in BASIS_KINDS)) for grid in grids}
    columns = {
        "claim": [claim for claim, _ in claims],
        "": [_in_words(group) for _, group in claims],
        "measured": [
            "; ".join(f"{row['corpus']} ({bases[row['comparison']]}): {row['measured']}" for row in rows_of(group))
            for _, group in claims
        ],
    }
    spread = max(
        max(row["nats_per_token_by_seed"]) - min(row["nats_per_token_by_seed"])
        for grid in grids
        for row in rows_of(pick(grid.as_trained, length_tokens=grid.train_length or grid.lengths[0]))
        if row["nats_per_token_by_seed"]
    )
    table = of_columns(columns, num_text_columns=3)
    withdrawn = list(dict.fromkeys(variant for grid in grids for variant in grid.withdrawn))
    values = {"trainings": trainings, "spread": spread, "withdrawn": withdrawn}
    return [make_section("claims.j2", "all_claims", tables=[table], **values)]


def basis(grid: Comparison, trainings: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The basis of a comparison's verdicts: training tokens per parameter, seeds and evaluated tokens."""
    tokens_per_parameter = trainings["num_train_tokens"] / trainings["num_parameters"]
    lines = render_lines(
        "claims.j2", "basis", grid=grid, ratios=tokens_per_parameter, num_tokens=rows["num_tokens"].max()
    )
    return " ".join(lines)


def judged_claims(grids: Sequence[Comparison]) -> pd.DataFrame:
    """One row per claim and comparison that tests it: ``claim, comparison, corpus, verdict, measured``."""
    methods, betas = zip(*(grid.split() for grid in grids), strict=True)
    trained = [grid and grid.from_training_length() for grid in methods]
    asked = [
        (claim, grid)
        for claims, of in ((METHOD_CLAIMS, trained), (BETA_CLAIMS, betas))
        for claim in claims
        for grid in of
        if grid
    ]
    rows = []
    for claim, grid in asked:
        for verdict, values in claim(grid):
            said, measured = render_lines("claims.j2", claim.__name__, grid=grid, **values)
            rows.append((said, grid.name, grid.corpus, verdict, measured))
    return pd.DataFrame(rows, columns=["claim", "comparison", "corpus", "verdict", "measured"])


def _in_words(found: pd.DataFrame) -> str:
    """``holds``, or ``holds (one corpus); not shown (another)`` if corpora differ."""
    corpora = {word.value: found.loc[found["verdict"] == word, "corpus"].tolist() for word in Verdict}
    corpora = {word: where for word, where in corpora.items() if where}
    if len(corpora) == 1:
        return next(iter(corpora))
    return "; ".join(f"{word} ({'; '.join(where)})" for word, where in corpora.items())


def _setting_section(grid: Comparison, methods: Comparison | None, own: Frames) -> Section:
    training, (num_tokens,) = own["training"], own["extrapolation"]["num_tokens"].dropna().unique().tolist()
    pictures = []
    # Curves that differ only in beta would cover each other.
    drawn = pick(training, seed=training["seed"].iloc[0])
    drawn = drawn[drawn["variant"].isin(methods.variants if methods else []) & drawn["loss_history"].map(bool)]
    if len(drawn):
        alt = f"Training loss against step of {grid.name}, first seed"
        pictures.append(Picture(f"{file_stem(grid.name)}_training.png", training_figure(drawn), alt))
    corpus = own["corpus"].iloc[0] if len(own.get("corpus", [])) else None
    values = {"grid": grid, "training": training, "corpus": corpus, "num_tokens": num_tokens}
    return make_section(TEMPLATE, "setting", pictures=pictures, **values)


def _screen_section(grid: Comparison) -> Section:
    methods = screened(grid)
    return make_section(TEMPLATE, "screen", tables=screen_tables(methods), grid=grid, methods=methods)


def _method_sections(grid: Comparison, own: Frames) -> list[Section]:
    stem = file_stem(grid.name)
    pictures = [
        Picture(f"{stem}.png", extrapolation_figure(grid.as_trained), f"Perplexity against length, {grid.name}")
    ]
    if len(grid.variants) > 1:
        alt = f"Nats per token above {grid.reference} against length, {grid.name}"
        pictures.append(Picture(f"{stem}_differences.png", difference_figure(grid), alt))
    tables = [extrapolation_table(grid.as_trained), differences_table(grid, grid.as_trained)]
    sections = [make_section(TEMPLATE, "extrapolation", pictures=pictures, tables=tables, grid=grid)]
    located = _located(grid, own["extrapolation"])
    if len(located):
        picture = Picture(
            f"{stem}_positions.png", position_figure(located), "Nats per token against position, by method"
        )
        sections.append(make_section(TEMPLATE, "positions", pictures=[picture], grid=grid))
    if "bias_by_distance" in own and len(own["bias_by_distance"]):
        sections += _learned_bias_section(grid, own["bias_by_distance"])
    if grid.scaled:
        frame = grid.frame[grid.frame["variant"].isin(grid.scaled)]
        pictures = [
            Picture(
                f"{stem}_{variant}_scaling.png",
                extrapolation_figure((of := pick(frame, variant=variant)).assign(name=of["reading"])),
                f"Perplexity against length of {variant}, as trained and scaled at inference",
            )
            for variant in grid.scaled
        ]
        tables = [extrapolation_table(frame), differences_table(grid, frame)]
        sections.append(make_section(TEMPLATE, "scaling", pictures=pictures, tables=tables, grid=grid))
    return sections


def _located(grid: Comparison, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with losses by position: the first seed of each variant as trained, at the longest length."""
    drawn = pick(rows, seed=grid.seeds[0], reading=AS_TRAINED, protocol="nonoverlapping")
    drawn = pick(drawn, length_tokens=grid.lengths[-1])
    return drawn[drawn["nats_by_position"].notna() & drawn["variant"].isin(grid.variants)]


def _learned_bias_section(grid: Comparison, frame: pd.DataFrame) -> list[Section]:
    """Bias by distance, first seed, of every method whose bias is learned."""
    rows = [row for row in rows_of(pick(frame, seed=frame["seed"].min())) if row["bias_before"] != row["bias_after"]]
    if not rows:
        return []
    pictures = [
        Picture(
            f"{file_stem(grid.name)}_bias_{file_stem(row['variant'])}.png",
            bias_by_distance_figure(row),
            f"Bias by distance of each head of {row['variant']}",
        )
        for row in rows
    ]
    moved = {row["variant"]: largest_move(row) for row in rows}
    return [make_section(TEMPLATE, "learned_bias", pictures=pictures, grid=grid, moved=moved)]


def largest_move(row: Record) -> float:
    """The largest change of a bias within the training length, relative to distance 0: softmax ignores constants."""
    within = [d for d, distance in enumerate(row["distances_tokens"]) if distance < row["train_context_length"]]
    before, after = ([head for layer in row[name] for head in layer] for name in ("bias_before", "bias_after"))
    return max(
        abs((new[d] - new[0]) - (old[d] - old[0])) for old, new in zip(before, after, strict=True) for d in within
    )


def _beta_sections(
    grid: Comparison, trained: pd.DataFrame | None, starts: dict[str, float], figure: str
) -> list[Section]:
    """Perplexity against beta, and the learned values, with their ``starts``, if beta or the slopes were learned."""
    curves = {protocol: beta_curves(grid, protocol) for protocol in grid.protocols}
    drawn, pictures = curves[grid.main_protocol], []
    if drawn:
        alt = f"Perplexity against {BETA}, {grid.corpus}"
        pictures.append(Picture(f"{figure}.png", beta_comparison_figure(drawn), alt))
    tables: list[Table] = [beta_comparison_table(of_protocol) for of_protocol in curves.values()]
    if grid.learned:
        tables.append(differences_table(grid, grid.as_trained[grid.as_trained["variant"].isin(grid.learned)]))
    kinds = list(dict.fromkeys(kind for kind, _ in drawn))
    sections = [make_section(TEMPLATE, "betas", pictures=pictures, tables=tables, grid=grid, kinds=kinds)]
    if trained is not None and len(trained):
        tables = trained_beta_tables(trained)
        sections.append(make_section(TEMPLATE, "learned_betas", tables=tables, corpus=grid.corpus, starts=starts))
    return sections


def _published_sections(grids: Sequence[Comparison], published: pd.DataFrame | None) -> list[Section]:
    """Changes in nats beyond the training length, by method, as a paper published them and as measured here."""
    grids = [part for grid in grids if (part := grid.from_training_length())]
    if published is None or not grids:
        return []
    measured = published[published["error"].isna()]
    alibi = pick(measured, position_method="alibi")
    papers = []
    for method, rows in measured.groupby("position_method", sort=False):
        near, far = rows.iloc[0], rows.iloc[-1]
        here = [
            (grid, change, grid.difference(method, far["protocol"], grid.lengths[0]))
            for grid in grids
            if method in grid.variants and far["protocol"] in grid.protocols
            if (change := grid.change(method, far["protocol"], grid.lengths[-1]))
        ]
        paper = {"method": method, "lengths": (near["length_tokens"], far["length_tokens"]), "here": here}
        paper["change"] = _one_number(math.log(far["perplexity"] / near["perplexity"]))
        if method != "alibi":
            paper["beside"] = _one_number(math.log(near["perplexity"] / alibi["perplexity"].iloc[0]))
        papers.append(paper)
    source = published["provenance"].iloc[0].get("source")
    tables = [extrapolation_table(published)]
    return [make_section(TEMPLATE, "published", tables=tables, source=source, grids=grids, papers=papers)]


def _one_number(nats: float) -> Difference:
    """A published difference, which has no seeds or blocks."""
    return within_a_model([nats])
