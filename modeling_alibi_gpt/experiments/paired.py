"""Statistics of a comparison: the mean loss over seeds, and the difference from a reference, paired by seed."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from modeling_alibi_gpt.runtime.record_types import AS_TRAINED
from modeling_alibi_gpt.runtime.records import provenance
from modeling_alibi_gpt.runtime.variants import what_varies


def comparison_records(
    records: Sequence[dict[str, Any]], *, reference: str, corpus: str | None = None
) -> list[dict[str, Any]]:
    """One ``comparison`` record for each variant, reading, protocol and length.

    Seeds are paired: two variants with the same seed saw the same text in the same order, so their difference is less
    noisy than either loss. ``nats_per_token`` is the mean over seeds, and ``difference_nats`` is the mean difference
    from the reference variant as trained, each with the standard deviation over seeds (null for one seed).
    ``nats_per_token_by_seed_and_block`` has one row per seed and one column per block of the text; it is null for rows
    without blocks. Blocks depend only on the text, so they are the same for all variants, readings and lengths. If a
    variant fails, its record has an ``error`` and no losses.

    Args:
        records: Records of one comparison; only ``extrapolation`` records are used.
        reference: Name of the reference variant.
        corpus: Display name of the text; the name of the comparison by default.
    """
    cells: dict[tuple[str, str, str, int], dict[int, dict[str, Any]]] = {}
    for row in records:
        if row["kind"] == "extrapolation":
            key = (row["variant"], row["reading"], row["protocol"], row["length_tokens"])
            cells.setdefault(key, {})[row["seed"]] = row
    return [
        _comparison_record(rows, cells[reference, AS_TRAINED, protocol, length], reference, corpus)
        for (_, _, protocol, length), rows in cells.items()
    ]


def _comparison_record(
    rows: dict[int, dict[str, Any]], beside: dict[int, dict[str, Any]], reference: str, corpus: str | None
) -> dict[str, Any]:
    first = next(iter(rows.values()))
    error = next((row["error"] for row in rows.values() if row["error"]), None)
    seeds = sorted(rows)
    nats = [] if error else [rows[seed]["nats_per_token"] for seed in seeds]
    has_differences = not error and not any(row["error"] for row in beside.values())
    differences = [rows[s]["nats_per_token"] - beside[s]["nats_per_token"] for s in seeds] if has_differences else []
    blocks = [rows[seed].get("nats_per_token_by_block") for seed in seeds]
    return {
        "kind": "comparison",
        **{name: first[name] for name in ("comparison", "variant", "reading", "name", "position_method")},
        "corpus": corpus or first["comparison"],
        "varies": what_varies(first["position_method"], first["fields"]),
        "fields": first["fields"],
        "reading_fields": first["overrides"],
        **{name: first[name] for name in ("protocol", "length_tokens", "stride_tokens", "train_context_length")},
        "reference": reference,
        "seeds": seeds,
        "nats_per_token_by_seed": nats,
        "nats_per_token": statistics.fmean(nats) if nats else None,
        "nats_per_token_sd": _spread(nats),
        "nats_per_token_by_seed_and_block": None if None in blocks else blocks,
        "perplexity": math.exp(statistics.fmean(nats)) if nats else None,
        "difference_nats_by_seed": differences,
        "difference_nats": statistics.fmean(differences) if differences else None,
        "difference_nats_sd": _spread(differences),
        "error": error,
        "provenance": provenance(data_fingerprint=first["provenance"]["data_fingerprint"]),
    }


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
