"""What a comparison shows, in words: every sentence is made from the records, and says only what they hold."""

import math
from collections.abc import Mapping, Sequence

from modeling_alibi_gpt.reporting.grid import AS_TRAINED, NOISE_NATS, Grid, format_change, sign
from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.tables import BETA, format_count, format_ratio, group_by, protocol_name


def noise_rule(num_seeds: int) -> str:
    """How the words of findings are chosen."""
    return (
        f"A difference counts where all {num_seeds} seeds agree on its sign and their mean is above {NOISE_NATS} "
        "nats; anything else is called no different. Numbers in brackets are the seeds."
    )


def extrapolation_findings(grid: Grid) -> list[str]:
    """What happens to each method from the training length to the longest one."""
    near, far = grid.lengths[0], grid.lengths[-1]
    reach = f"from {format_count(near)} to {format_count(far)} tokens"
    others = [variant for variant in grid.variants if variant != grid.reference]
    changes = [
        f"{protocol_name(name)} {format_change(grid.change(grid.reference, name, far))}" for name in grid.protocols
    ]
    findings = [f"{grid.reference} {reach}, in nats per token: {'; '.join(changes)}."]
    if {"nonoverlapping", "sliding"} <= set(grid.protocols):
        findings.append(_early_tokens(grid, far))
    for protocol in grid.protocols:
        words = _sorted_by_sign({variant: grid.change(variant, protocol, far) for variant in grid.variants})
        findings.append(f"{reach.capitalize()} with {protocol_name(protocol)} windows: {words}.")
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
    """Where the best beta lies, for each kind of slopes and each length, and what tuning it is worth."""
    findings = []
    for kind in ("geometric", "uniform"):
        best_betas = []
        for length in grid.lengths:
            curve = beta_curve(grid, kind, "sliding", length)
            best = best_beta(curve)
            best_betas.append(best)
            level = [b for b in sorted(curve) if not sign(_paired(curve[b], curve[best]))]
            words = f"{kind} slopes at {format_count(length)} tokens, sliding: best {BETA} {format_ratio(best)}"
            if 1.0 in curve:
                words += f"; {BETA} 1 costs {format_change(_paired(curve[1.0], curve[best]))} nats against it"
            findings.append(f"{words}; no different from it: {', '.join(map(format_ratio, level))}.")
        moves = "does not move" if len(set(best_betas)) == 1 else "moves"
        findings.append(f"The best {BETA} of {kind} slopes {moves} with the length that is read.")
    for length in grid.lengths:
        curves = [beta_curve(grid, kind, "sliding", length) for kind in ("uniform", "geometric")]
        change = format_change(_paired(*(curve[best_beta(curve)] for curve in curves)))
        findings.append(
            f"At {format_count(length)} tokens the best uniform slope stands {change} nats to the best geometric ones."
        )
    learned = [record["variant"] for record in grid.as_trained if "alibi_trainable" in record["fields"]]
    for variant in dict.fromkeys(learned):
        cells = [grid.cell(variant, "sliding", length) for length in grid.lengths]
        changes = [
            f"{format_change(cell['difference_nats_by_seed'])} at {format_count(cell['length_tokens'])} tokens"
            for cell in cells
        ]
        findings.append(f"{variant} against {grid.reference}, sliding: {', '.join(changes)}.")
    return findings


def published_findings(grid: Grid, published: Sequence[Record]) -> list[str]:
    """What a paper measured for each method, in nats from its training length on, and what was measured here."""
    findings = []
    for method, records in group_by(published, lambda record: record["position_method"]).items():
        measured = [record for record in records if record["error"] is None]
        near, far = measured[0], measured[-1]
        there = math.log(far["perplexity"] / near["perplexity"])
        here = grid.change(method, far["protocol"], grid.lengths[-1]) if method in grid.variants else None
        if here is None:
            continue
        same = sign([there]) == sign(here)
        findings.append(
            f"{method}, {protocol_name(far['protocol'])}: the paper {format_change([there])} nats from "
            f"{format_count(near['length_tokens'])} to {format_count(far['length_tokens'])} tokens, here "
            f"{format_change(here)} from {format_count(grid.lengths[0])} to {format_count(grid.lengths[-1])}: "
            f"{'the same direction' if same else 'another direction'}."
        )
    return findings


def learned_bias_findings(records: Sequence[Record]) -> list[str]:
    """How far training moved each learned bias, in nats and within the training length."""
    return [f"{record['variant']}: no bias moved further than {_moved(record):.2f} nats." for record in records]


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


def _paired(record: Record, other: Record) -> list[float]:
    pairs = zip(record["nats_per_token_by_seed"], other["nats_per_token_by_seed"], strict=True)
    return [one - two for one, two in pairs]


def _early_tokens(grid: Grid, far: int) -> str:
    """The paper's own caveat: windows that do not overlap gain by having fewer tokens near their start."""
    whole, sliding = (grid.change(grid.reference, protocol, far) for protocol in ("nonoverlapping", "sliding"))
    assert whole is not None and sliding is not None
    words = {0: "no different", 1: "higher", -1: "lower"}
    return (
        f"Read further, {grid.reference} is {words[sign(whole)]} with non-overlapping windows and "
        f"{words[sign(sliding)]} with sliding ones, where every scored token has most of a window behind it; what the "
        "two differ by is the price of tokens near the start of a window, not the use of distant text."
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
    return None if scaled["error"] or trained["error"] else _paired(scaled, trained)
