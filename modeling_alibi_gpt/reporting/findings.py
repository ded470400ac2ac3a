"""What a comparison shows, in words: every sentence is made from the records, and says only what they hold."""

import math
from collections.abc import Mapping, Sequence

from modeling_alibi_gpt.reporting.grid import AS_TRAINED, BETA_DEFAULTS, Grid, format_change, is_of_betas, paired
from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.statistics import (
    BLOCK_ERROR_NATS,
    LONE_SEED_NATS,
    NOISE_NATS,
    BetaChoice,
    Difference,
    choose_beta,
    within_a_model,
)
from modeling_alibi_gpt.reporting.tables import BETA, format_count, format_ratio, group_by, protocol_name


def noise_rule(grid: Grid) -> str:
    """How the words of findings are chosen."""
    num_seeds = len(grid.records[0]["seeds"])
    measured = all(record.get("nats_per_token_by_block") for record in grid.records if not record["error"])
    error = "" if measured else f", for which these records take {BLOCK_ERROR_NATS} nats"
    between = (
        f"all {num_seeds} seeds agree on its sign and their mean is above {NOISE_NATS} nats and two standard errors "
        "over seeds"
        if num_seeds > 1
        else f"it is above {LONE_SEED_NATS} nats"
    )
    within = "their mean is above" if num_seeds > 1 else "it is above"
    return (
        f"A difference between trainings counts where {between}; a difference between two readings of one model where "
        f"{within} two standard errors over blocks of the text{error}. Anything else is called no different: it was "
        "not detected, which does not show that it is absent."
        + (" Numbers in brackets are the seeds." if num_seeds > 1 else "")
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
        findings += _early_tokens(grid, far)
    for protocol in grid.protocols:
        words = _sorted_by_sign({variant: grid.change(variant, protocol, far) for variant in grid.variants})
        findings.append(f"{grid.reach.capitalize()} tokens with {protocol_name(protocol)} windows: {words}.")
    protocol = grid.main_protocol
    for length in dict.fromkeys((near, far)) if others else ():
        words = _sorted_by_sign({variant: grid.difference(variant, protocol, length) for variant in others})
        where = f"at {format_count(length)} tokens with {protocol_name(protocol)} windows"
        findings.append(f"Against {grid.reference} {where}: {words}.")
    return findings


def scaling_findings(grid: Grid) -> list[str]:
    """What a reading that was not trained does to each variant that has some."""
    findings = []
    for variant in grid.variants:
        for length in grid.lengths[1:]:
            readings = [reading for reading in grid.readings(variant) if reading != AS_TRAINED]
            protocol = grid.main_protocol
            words = _sorted_by_sign(
                {r: grid.difference(variant, protocol, length, r, against=variant) for r in readings}
            )
            if readings:
                where = f"at {format_count(length)} tokens, {protocol_name(protocol)}"
                findings.append(f"{variant} {where}, against itself as trained: {words}.")
    return findings


def beta_findings(grid: Grid) -> list[str]:
    """Where the best beta lies, for each kind of slopes and each length, and what tuning or learning it is worth."""
    protocol = grid.main_protocol
    findings = _curve_findings(grid, "geometric") + _curve_findings(grid, "uniform")
    for length in grid.lengths:
        uniform, geometric = (beta_curve(grid, kind, protocol, length) for kind in ("uniform", "geometric"))
        if uniform and geometric:
            change = format_change(paired(uniform[lowest_beta(uniform)], geometric[lowest_beta(geometric)]))
            findings.append(
                f"At {format_count(length)} tokens the best uniform slope is {change} above the best geometric."
            )
    for length in grid.lengths:
        curve, own = beta_curve(grid, "geometric", protocol, length, after_training=True), trained_beta(grid)
        if len(curve) < 2 or own not in curve:
            continue
        changes = _sorted_by_sign(
            {format_ratio(beta): paired(curve[beta], curve[own]) for beta in curve if beta != own}
        )
        findings.append(
            f"Trained with {BETA} {format_ratio(own)}, read at {format_count(length)} tokens with another {BETA}: "
            f"{changes}."
        )
    for variant in learned_variants(grid):
        changes = ", ".join(
            f"{format_change(grid.difference(variant, protocol, length))} at {format_count(length)} tokens"
            for length in grid.lengths
        )
        findings.append(f"{variant} against {grid.reference}, {protocol_name(protocol)}: {changes}.")
    return findings


def learned_variants(grid: Grid) -> list[str]:
    """The variants whose beta or slopes learn."""
    learned = [r["variant"] for r in grid.as_trained if r["fields"].get("alibi_trainable", "none") != "none"]
    return list(dict.fromkeys(learned))


def published_findings(grids: Sequence[Grid], published: Sequence[Record]) -> list[str]:
    """What a paper measured for each method, in nats from its training length on, and what was measured here."""
    findings = []
    by_method = group_by([r for r in published if r["error"] is None], lambda record: record["position_method"])
    for method, records in by_method.items():
        paper = _one_number(math.log(records[-1]["perplexity"] / records[0]["perplexity"]))
        beside = _one_number(math.log(records[0]["perplexity"] / by_method["alibi"][0]["perplexity"]))
        protocol = records[-1]["protocol"]
        read_on, trained = [], []
        for grid in (grid for grid in grids if method in grid.variants and protocol in grid.protocols):
            change = grid.change(method, protocol, grid.lengths[-1])
            if change is None:
                continue
            same = "the same direction" if paper.sign == change.sign else "another direction"
            read_on.append(f"{format_change(change)} {grid.reach} on {grid.corpus}, {same}")
            trained.append(f"{format_change(grid.difference(method, protocol, grid.lengths[0]))} on {grid.corpus}")
        reach = f"{format_count(records[0]['length_tokens'])} to {format_count(records[-1]['length_tokens'])} tokens"
        words = f"{method}: the paper {format_change(paper)} nats from {reach}; here {'; '.join(read_on)}."
        if method != "alibi":
            words += f" Where trained, against alibi: the paper {format_change(beside)}; here {'; '.join(trained)}."
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
        if (record["protocol"], record["length_tokens"]) != (protocol, length) or not is_of_betas(record):
            continue
        if not record["reading_fields"].keys() <= BETA_DEFAULTS.keys():
            continue
        fields = BETA_DEFAULTS | record["fields"] | record["reading_fields"]
        if fields["alibi_trainable"] != "none" or fields["alibi_slope_kind"] != kind:
            continue
        is_trained = record["reading"] == AS_TRAINED
        if is_trained if not after_training else record["variant"] == grid.reference:
            curve[float(fields["alibi_beta"])] = record
    return dict(sorted(curve.items()))


def trained_beta(grid: Grid) -> float:
    """The beta that the reference was trained with."""
    (fields, *_) = (record["fields"] for record in grid.records if record["variant"] == grid.reference)
    return float(fields.get("alibi_beta", 1.0))


def lowest_beta(curve: Mapping[float, Record]) -> float:
    """The beta of the lowest loss."""
    return min((record["nats_per_token"], beta) for beta, record in curve.items())[1]


def choose_of_curve(curve: Mapping[float, Record]) -> BetaChoice:
    """The beta to take, and between which the curve cannot tell."""
    lowest = lowest_beta(curve)
    differences = {beta: paired(record, curve[lowest]) for beta, record in curve.items()}
    return choose_beta({beta: found for beta, found in differences.items() if found is not None}, lowest)


def name_choice(curve: Mapping[float, Record]) -> str:
    """The beta to take, those not told apart from it, and whether the true one may lie beyond what was tried."""
    choice = choose_of_curve(curve)
    words = f"{BETA} {format_ratio(choice.taken)}"
    notes = []
    if len(choice.level) > 1:
        notes.append(f"not told apart: {', '.join(map(format_ratio, choice.level))}")
    edges = {min(curve): "smallest", max(curve): "largest"}
    notes += [f"{format_ratio(beta)} is the {edges[beta]} tried" for beta in choice.level if beta in edges]
    return words + (f" ({'; '.join(notes)})" if notes else "")


def beta_moves(curves: Sequence[Mapping[float, Record]]) -> bool:
    """Whether the best beta of one curve is worse than the best of another curve on that other curve."""
    return any(
        lowest_beta(one) in other and lowest_beta(one) not in choose_of_curve(other).level
        for one in curves
        for other in curves
    )


def _curve_findings(grid: Grid, kind: str) -> list[str]:
    protocol = grid.main_protocol
    curves = [beta_curve(grid, kind, protocol, length) for length in grid.lengths]
    if not all(curves):
        return []
    findings = []
    for length, curve in zip(grid.lengths, curves, strict=True):
        choice = choose_of_curve(curve)
        words = f"{kind} slopes at {format_count(length)} tokens, {protocol_name(protocol)}: lowest at {BETA} "
        words += format_ratio(choice.lowest)
        if 1.0 in curve and choice.lowest != 1.0:
            words += f", {BETA} 1 costs {format_change(paired(curve[1.0], curve[choice.lowest]))} nats against it"
        if len(choice.level) == 1:
            findings.append(f"{words}; all others are told apart from it.")
        else:
            level = ", ".join(map(format_ratio, choice.level))
            findings.append(f"{words}; not told apart: {level}, of which {format_ratio(choice.taken)} is nearest 1.")
    if len(curves) == 1:
        return findings
    moves = "moves" if beta_moves(curves) else "is not seen to move"
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


def _early_tokens(grid: Grid, far: int) -> list[str]:
    """The paper's own caveat: windows that do not overlap gain by having fewer tokens near their start."""
    whole, sliding = (grid.change(grid.reference, protocol, far) for protocol in ("nonoverlapping", "sliding"))
    if whole is None or sliding is None:
        return []
    words = {0: "no different", 1: "higher", -1: "lower"}
    return [
        f"Read further, {grid.reference} is {words[whole.sign]} with non-overlapping windows and "
        f"{words[sliding.sign]} with sliding ones, where every scored token has most of a window behind it. That the "
        "two differ is no use of distant text: longer windows that do not overlap have fewer tokens near their start."
    ]


def _sorted_by_sign(differences: Mapping[str, Difference | None]) -> str:
    """``lower: a -0.1 (..); no different: b; higher: c +0.2 (..); cannot be read: d``."""
    groups: dict[str, list[str]] = {"lower": [], "no different": [], "higher": [], "cannot be read": []}
    for name, difference in differences.items():
        if difference is None:
            groups["cannot be read"].append(name)
        else:
            word = {-1: "lower", 0: "no different", 1: "higher"}[difference.sign]
            groups[word].append(f"{name} {format_change(difference)}")
    return "; ".join(f"{word}: {', '.join(members)}" for word, members in groups.items() if members)


def _one_number(nats: float) -> Difference:
    """A difference that a paper gives, without seeds or blocks."""
    return within_a_model([nats], None, None)
