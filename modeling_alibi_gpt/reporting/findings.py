"""What a comparison shows, in words: every sentence is made from the records, and says only what they hold."""

import math
from collections.abc import Mapping, Sequence

from modeling_alibi_gpt.reporting.grid import AS_TRAINED, NOISE_NATS, Grid, format_change, paired, sign
from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.tables import BETA, format_count, format_ratio, group_by, protocol_name


def noise_rule(num_seeds: int) -> str:
    """How the words of findings are chosen."""
    return (
        f"A difference counts where all {num_seeds} seeds agree on its sign and their mean is above {NOISE_NATS} "
        "nats; anything else is called no different. This is a screen, not a test: of noise alone, one in "
        f"{2 ** (num_seeds - 1)} would agree on its sign. Numbers in brackets are the seeds."
    )


def extrapolation_findings(grid: Grid) -> list[str]:
    """What happens to each method from the training length to the longest one."""
    near, far = grid.lengths[0], grid.lengths[-1]
    others = [variant for variant in grid.variants if variant != grid.reference]
    changes = [
        f"{protocol_name(name)} {format_change(grid.change(grid.reference, name, far))}" for name in grid.protocols
    ]
    findings = [f"{grid.reference} {grid.reach} tokens, in nats per token: {'; '.join(changes)}."]
    if {"nonoverlapping", "sliding"} <= set(grid.protocols):
        findings.append(_early_tokens(grid, far))
    for protocol in grid.protocols:
        words = _sorted_by_sign({variant: grid.change(variant, protocol, far) for variant in grid.variants})
        findings.append(f"{grid.reach.capitalize()} tokens with {protocol_name(protocol)} windows: {words}.")
    for length in (near, far):
        words = _sorted_by_sign({variant: _difference(grid, variant, "sliding", length) for variant in others})
        findings.append(f"Against {grid.reference} at {format_count(length)} tokens with sliding windows: {words}.")
    return findings


def scaling_findings(grid: Grid) -> list[str]:
    """What a reading that was not trained does to each variant that has some."""
    findings = []
    for variant in grid.variants:
        for length in grid.lengths[1:]:
            readings = [reading for reading in grid.readings(variant) if reading != AS_TRAINED]
            words = _sorted_by_sign({reading: _gain(grid, variant, reading, length) for reading in readings})
            if readings:
                findings.append(
                    f"{variant} at {format_count(length)} tokens, sliding, against itself as trained: {words}."
                )
    return findings


def beta_findings(grid: Grid) -> list[str]:
    """Where the best beta lies, for each kind of slopes and each length, and what tuning or learning it is worth."""
    findings = _curve_findings(grid, "geometric") + _curve_findings(grid, "uniform")
    for length in grid.lengths:
        uniform, geometric = (beta_curve(grid, kind, "sliding", length) for kind in ("uniform", "geometric"))
        if uniform:
            change = format_change(paired(uniform[best_beta(uniform)], geometric[best_beta(geometric)]))
            findings.append(
                f"At {format_count(length)} tokens the best uniform slope is {change} above the best geometric."
            )
    for length in grid.lengths:
        curve = beta_curve(grid, "geometric", "sliding", length, after_training=True)
        if len(curve) == 1:
            continue
        changes = _sorted_by_sign(
            {format_ratio(beta): paired(curve[beta], curve[1.0]) for beta in curve if beta != 1.0}
        )
        findings.append(
            f"Trained with {BETA} 1, read at {format_count(length)} tokens with another {BETA}: {changes}."
        )
    learned = [record["variant"] for record in grid.as_trained if "alibi_trainable" in record["fields"]]
    for variant in dict.fromkeys(learned):
        changes = ", ".join(
            f"{format_change(grid.cell(variant, 'sliding', length)['difference_nats_by_seed'])} at "
            f"{format_count(length)} tokens"
            for length in grid.lengths
        )
        findings.append(f"{variant} against {grid.reference}, sliding: {changes}.")
    return findings


def published_findings(grids: Sequence[Grid], published: Sequence[Record]) -> list[str]:
    """What a paper measured for each method, in nats from its training length on, and what was measured here."""
    findings = []
    by_method = group_by([r for r in published if r["error"] is None], lambda record: record["position_method"])
    for method, records in by_method.items():
        there = math.log(records[-1]["perplexity"] / records[0]["perplexity"])
        beside = math.log(records[0]["perplexity"] / by_method["alibi"][0]["perplexity"])
        protocol = records[-1]["protocol"]
        read_on, trained = [], []
        for grid in (grid for grid in grids if method in grid.variants):
            change = grid.change(method, protocol, grid.lengths[-1])
            assert change is not None
            same = "the same direction" if sign([there]) == sign(change) else "another direction"
            read_on.append(f"{format_change(change)} {grid.reach} on {grid.corpus}, {same}")
            cell = grid.cell(method, protocol, grid.lengths[0])
            trained.append(f"{format_change(cell['difference_nats_by_seed'])} on {grid.corpus}")
        reach = f"{format_count(records[0]['length_tokens'])} to {format_count(records[-1]['length_tokens'])} tokens"
        words = f"{method}: the paper {format_change([there])} nats from {reach}; here {'; '.join(read_on)}."
        if method != "alibi":
            words += f" Where trained, against alibi: the paper {format_change([beside])}; here {'; '.join(trained)}."
        findings += [words] if read_on else []
    return findings


def learned_bias_findings(records: Sequence[Record]) -> list[str]:
    """How far training moved each learned bias within the training length."""
    return [
        f"{record['variant']}: within the training length no bias moved further than {_moved(record):.2f}, against "
        "that of distance 0."
        for record in records
    ]


def beta_curve(
    grid: Grid, kind: str, protocol: str, length: int, *, after_training: bool = False
) -> dict[float, Record]:
    """Records by beta: one training each, or with ``after_training`` one that was given other betas."""
    curve = {}
    for record in grid.records:
        if (record["protocol"], record["length_tokens"]) != (protocol, length):
            continue
        fields = record["fields"] | record["reading_fields"]
        known = fields.keys() <= {"alibi_beta", "alibi_slope_kind"}
        if not known or fields.get("alibi_slope_kind", "geometric") != kind:
            continue
        is_trained = record["reading"] == AS_TRAINED
        if is_trained if not after_training else record["variant"] == grid.reference:
            curve[float(fields.get("alibi_beta", 1.0))] = record
    return dict(sorted(curve.items()))


def best_beta(curve: Mapping[float, Record]) -> float:
    """The beta of the lowest loss."""
    return min((record["nats_per_token"], beta) for beta, record in curve.items())[1]


def name_best(curve: Mapping[float, Record]) -> str:
    """The best beta, and whether the true one may lie beyond what was tried."""
    best = best_beta(curve)
    edges = {min(curve): "the smallest tried", max(curve): "the largest tried"}
    return f"{BETA} {format_ratio(best)}" + (f" ({edges[best]})" if best in edges else "")


def beta_moves(curves: Sequence[Mapping[float, Record]]) -> bool:
    """Whether the best beta of one curve is worse than the best of another curve on that other curve."""
    return any(
        best_beta(one) in other and sign(paired(other[best_beta(one)], other[best_beta(other)])) > 0
        for one in curves
        for other in curves
    )


def _curve_findings(grid: Grid, kind: str) -> list[str]:
    curves = [beta_curve(grid, kind, "sliding", length) for length in grid.lengths]
    if not all(curves):
        return []
    findings = []
    for length, curve in zip(grid.lengths, curves, strict=True):
        best = curve[best_beta(curve)]
        level = [beta for beta in curve if not sign(paired(curve[beta], best))]
        words = f"{kind} slopes at {format_count(length)} tokens, sliding: best is {name_best(curve)}"
        if 1.0 in curve:
            words += f"; {BETA} 1 costs {format_change(paired(curve[1.0], best))} nats against it"
        findings.append(f"{words}; no different from it: {', '.join(map(format_ratio, level))}.")
    moves = "moves" if beta_moves(curves) else "does not move"
    return [*findings, f"The best {BETA} of {kind} slopes {moves} with the length that is read."]


def _moved(record: Record) -> float:
    """The largest change of a bias up to the training length, against distance 0: the softmax sees no constant."""
    within = [d for d, distance in enumerate(record["distances_tokens"]) if distance < record["train_context_length"]]
    heads_before, heads_after = (
        [head for layer in record[name] for head in layer] for name in ("bias_before", "bias_after")
    )
    return max(
        abs((after[d] - after[0]) - (before[d] - before[0]))
        for before, after in zip(heads_before, heads_after, strict=True)
        for d in within
    )


def _early_tokens(grid: Grid, far: int) -> str:
    """The paper's own caveat: windows that do not overlap gain by having fewer tokens near their start."""
    whole, sliding = (grid.change(grid.reference, protocol, far) for protocol in ("nonoverlapping", "sliding"))
    assert whole is not None and sliding is not None
    words = {0: "no different", 1: "higher", -1: "lower"}
    return (
        f"Read further, {grid.reference} is {words[sign(whole)]} with non-overlapping windows and "
        f"{words[sign(sliding)]} with sliding ones, where every scored token has most of a window behind it. That the "
        "two differ is no use of distant text: longer windows that do not overlap have fewer tokens near their start."
    )


def _sorted_by_sign(differences: Mapping[str, Sequence[float] | None]) -> str:
    """``lower: a -0.1 (..); no different: b; higher: c +0.2 (..); cannot be read: d``."""
    groups: dict[str, list[str]] = {"lower": [], "no different": [], "higher": [], "cannot be read": []}
    for name, values in differences.items():
        if values is None:
            groups["cannot be read"].append(name)
        else:
            word = {-1: "lower", 0: "no different", 1: "higher"}[sign(values)]
            groups[word].append(f"{name} {format_change(values)}")
    return "; ".join(f"{word}: {', '.join(members)}" for word, members in groups.items() if members)


def _difference(grid: Grid, variant: str, protocol: str, length: int) -> list[float] | None:
    return grid.cell(variant, protocol, length)["difference_nats_by_seed"] or None


def _gain(grid: Grid, variant: str, reading: str, length: int) -> list[float] | None:
    scaled, trained = (grid.cell(variant, "sliding", length, of) for of in (reading, AS_TRAINED))
    return None if scaled["error"] or trained["error"] else paired(scaled, trained)
