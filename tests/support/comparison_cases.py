"""Synthetic comparison records whose losses follow a formula, so that all findings are known."""

import math
from collections.abc import Sequence
from typing import Any

from modeling_alibi_gpt.experiments.paired import comparison_records
from modeling_alibi_gpt.report.comparison import Comparison
from modeling_alibi_gpt.report.frames import frame_of
from modeling_alibi_gpt.runtime.records import check_record
from tests.support.example_records import PROVENANCE, extrapolation_record, training_record


LENGTHS = (128, 1024)
SEEDS = (0, 1, 2)
# Nats above 4 at the training length, and the increase per doubling of the length.
METHODS = {"alibi": (0.0, 0.0), "rope": (-0.05, 0.2), "none": (0.3, 0.001)}


def rows_of(variant: str, seed: int, **fields: Any) -> list[dict[str, Any]]:
    """The rows of one run. The best beta is 2; doubling or halving it costs 0.03 nats."""
    method = fields.get("position_method", "alibi")
    start, growth = METHODS.get(method, (0.0, 0.0))
    labels = {"variant": variant, "name": variant, "reading": "as trained", "seed": seed, "fields": fields}
    rows = []
    for protocol in ("nonoverlapping", "sliding"):
        for length in LENGTHS:
            early = 0.05 if (protocol, length) == ("nonoverlapping", 128) else 0.0
            optimum = math.log2(fields.get("alibi_beta", 1.0)) - 1
            nats = 4 + start + growth * math.log2(length / 128) + early + 0.01 * seed + 0.03 * optimum**2
            record = extrapolation_record("alibi", protocol, length) | labels
            record |= {"comparison": "test", "position_method": method, "overrides": {}}
            rows.append(record | {"nats_per_token": nats, "perplexity": math.exp(nats)})
    return rows


def comparison(variants: dict[str, dict[str, Any]], extra: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """All records of a comparison of ``variants``, of which the first is the reference, and of ``extra`` rows."""
    records = [
        {"kind": "corpus", "comparison": "test", "source": "text:x", "num_documents": 1, "num_bytes": 9}
        | {"fingerprint": "0", "documents": ["a/emma.txt.gz"], "provenance": PROVENANCE}
    ]
    for seed in SEEDS:
        for variant, fields in variants.items():
            records.append(
                training_record("alibi", seed) | {"comparison": "test", "variant": variant, "fields": fields}
            )
            records += rows_of(variant, seed, **fields)
    records += extra
    records += comparison_records(records, reference=next(iter(variants)))
    for record in records:
        check_record(record)
    return records


def read_otherwise(
    rows: Sequence[dict[str, Any]], reading: str, nats: float, **overrides: Any
) -> list[dict[str, Any]]:
    """The rows of a model evaluated with other fields, ``nats`` above those as trained."""
    others = []
    for row in rows:
        there = row["nats_per_token"] + nats
        label = {"reading": reading, "name": f"{row['variant']}, {reading}", "overrides": overrides}
        others.append(row | label | {"nats_per_token": there, "perplexity": math.exp(there)})
    return others


def methods() -> list[dict[str, Any]]:
    """ALiBi, RoPE as trained and with NTK extension, and no positions."""
    extended = []
    for seed in SEEDS:
        for row in rows_of("rope", seed, position_method="rope"):
            nats = -0.3 if row["length_tokens"] > 128 else 0.1
            extended += read_otherwise([row], "ntk", nats, rope_extension={"type": "ntk", "factor": 8})
    return comparison(
        {"alibi": {}, "rope": {"position_method": "rope"}, "none": {"position_method": "none"}}, extended
    )


def beta_sweep() -> list[dict[str, Any]]:
    """Geometric and uniform slopes with four betas each, learned betas, and one model evaluated with beta 4."""
    betas = (0.5, 1.0, 2.0, 4.0)
    variants: dict[str, dict[str, Any]] = {"geometric 1": {}}
    variants |= {f"geometric {beta:g}": {"alibi_beta": beta} for beta in betas if beta != 1.0}
    variants |= {f"uniform {beta:g}": {"alibi_slope_kind": "uniform", "alibi_beta": beta} for beta in betas}
    variants |= {"learned beta": {"alibi_trainable": "beta", "position_learning_rate": 30}}
    read = [read_otherwise(rows_of("geometric 1", seed), "beta 4", 0.04, alibi_beta=4.0) for seed in SEEDS]
    return comparison(variants, [row for rows in read for row in rows])


def mixed() -> list[dict[str, Any]]:
    """One comparison of both betas and methods: ALiBi, beta 2 and 4, a learned beta, RoPE as trained and with YaRN."""
    variants: dict[str, dict[str, Any]] = {"alibi": {}, "beta 2": {"alibi_beta": 2.0}, "beta 4": {"alibi_beta": 4.0}}
    variants |= {"learned": {"alibi_trainable": "beta", "position_learning_rate": 30}}
    variants |= {"rope": {"position_method": "rope"}}
    read = [
        row
        for seed in SEEDS
        for row in read_otherwise(
            rows_of("rope", seed, position_method="rope"), "yarn", 0.1, rope_extension={"type": "yarn", "factor": 8}
        )
    ]
    return comparison(variants, read)


def grid_of(records: Sequence[dict[str, Any]]) -> Comparison:
    return Comparison(frame_of([record for record in records if record["kind"] == "comparison"]))
