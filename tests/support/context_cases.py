"""Synthetic records about the use of distant text."""

from typing import Any

from tests.support.example_records import PROVENANCE


KEPT = (32, 64, 128, 256)
EDGES = [1, 8, 32, 128, 256, 512]
SHARES = {"alibi": (1.0, 0.9, 0.25), "rope": (1.0, 0.5, 0.0), "learned": (1.0, None, None)}
LENGTHS, DEPTHS = (128, 256, 512), (0.0, 0.5, 1.0)


def recall_record(method: str, length: int, depth: float | None, **fields: Any) -> dict[str, Any]:
    share = SHARES[method][LENGTHS.index(length)]
    if share is not None and depth is not None:
        share = min(1.0, share + 0.2 * depth)
    measured = share is not None
    return {
        "kind": "recall",
        "name": method,
        "model": f"runs/{method}",
        "position_method": method,
        "overrides": {},
        "train_context_length": 128,
        "source": "task:recall",
        "length_tokens": length,
        "depth": depth,
        "num_examples": 100,
        "examples_seed": 0,
        "accuracy": share,
        "token_accuracy": share and (1 + share) / 2,
        "nats_per_token": 1 - share if measured else None,
        "num_answer_tokens": 1 if measured else None,
        "distance_tokens": (1 - (depth or 0)) * length if measured else None,
        "error": None if measured else "the learned table ends at 128 positions",
        "provenance": PROVENANCE,
        **fields,
    }


def recall_records(**fields: Any) -> list[dict[str, Any]]:
    return [
        recall_record(method, length, depth, **fields) for method in SHARES for length in LENGTHS for depth in DEPTHS
    ]


def context_record(method: str, reading: str, kept: int | None) -> dict[str, Any]:
    """Distant text is worth nothing to ALiBi and 0.1 nats to RoPE, to which replaced text costs another 0.5."""
    worth = {"alibi": 0.0, "rope": 0.1}[method] + (0.5 if (method, reading) == ("rope", "replaced") else 0.0)
    difference = 0.0 if kept is None else worth * 64 / kept
    blocks = [4.0 + 0.01 * (-1) ** block + difference for block in range(16)]
    return {
        "kind": "context",
        "name": method,
        "model": f"runs/{method}",
        "position_method": method,
        "overrides": {},
        "train_context_length": 128,
        "reading": reading,
        "kept_tokens": kept,
        "context_tokens": 512,
        "scored_tokens": 64,
        "num_windows": 256,
        "nats_per_token": 4.0 + difference,
        "difference_nats": None if kept is None else difference,
        "nats_per_token_by_block": blocks,
        "nats_by_last_occurrence": {
            "edges_tokens": EDGES,
            "nats_per_token": [2.0, 3.0, 4.0, 5.0 + difference, None],
            "num_tokens": [400, 300, 200, 100, 0],
            "not_before_nats_per_token": 9.0 + difference,
            "not_before_num_tokens": 50,
        },
        "error": None,
        "provenance": PROVENANCE,
    }


def context_records() -> list[dict[str, Any]]:
    parts = [("whole", None), *((reading, k) for reading in ("replaced", "cut") for k in KEPT)]
    return [context_record(method, *part) for method in ("rope", "alibi") for part in parts]
