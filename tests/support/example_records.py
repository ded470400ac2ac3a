"""A complete set of synthetic records: every kind, as a demo would write them, including failures."""

import math
from itertools import pairwise
from typing import Any


LENGTHS = (128, 256, 512, 1024, 2048)
PROVENANCE = {
    "git_commit": "0f3c9a1d7be2458896c14f0a7a3c5f6d2e1b0a98",
    "git_dirty": False,
    "time_utc": "2025-11-21T13:30:00+00:00",
    "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0", "optuna": None},
    "hardware": {"cpu": "Example CPU", "num_cores": 2, "memory_bytes": 25 * 2**30, "gpus": []},
    "seed": 0,
    "data_fingerprint": "5d41402abc4b2a76",
}
# Perplexity at each length, from the first trial runs of the models, with a position table that ends.
CURVES = {
    "alibi": (97.31, 96.60, 96.24, 96.02, 95.93),
    "sinusoidal": (187.62, 214.80, 239.55, 263.20, 282.04),
    "rope": (99.87, 118.42, 171.09, 236.71, 301.55),
    "none": (121.40, 124.87, 139.30, 168.66, 205.12),
    "learned": (134.25, None, None, None, None),
}


def training_record(method: str, seed: int = 0) -> dict[str, Any]:
    perplexity = CURVES[method][0]
    final = math.log(perplexity)
    steps = range(10, 410, 10)
    nats = [final + (7.6 - final) * math.exp(-step / 60) + 0.05 * math.sin(step * (seed + 2)) for step in steps]
    return {
        "kind": "training",
        "name": method,
        "model_dir": f"runs/demo/{method}",
        "position_method": method,
        "seed": seed,
        "num_parameters": 2_171_712,
        "train_length_tokens": 128,
        "num_train_tokens": 819_200,
        "validation_nats_per_token": final,
        "validation_perplexity": perplexity,
        "num_validation_tokens": 65_536,
        "train_seconds": 141.7,
        "bf16": True,
        "loss_history": [{"step": step, "nats_per_token": loss} for step, loss in zip(steps, nats, strict=True)],
        "provenance": PROVENANCE | {"seed": seed},
    }


def extrapolation_record(method: str, protocol: str, length_tokens: int) -> dict[str, Any]:
    perplexity = CURVES[method][LENGTHS.index(length_tokens)]
    if perplexity is not None and protocol == "sliding":
        perplexity = round(perplexity * 0.96, 2)
    measured = perplexity is not None
    nats = math.log(perplexity) if measured else None
    edges = [0, *(2**power for power in range(12) if 2**power <= length_tokens)]
    by_position = {
        "edges_tokens": edges,
        "nats_per_token": [(nats or 0) + 2.4 * math.exp(-index / 2) - 0.1 for index in range(len(edges) - 1)],
        "num_tokens": [64 * (high - low) for low, high in pairwise(edges)],
    }
    return {
        "kind": "extrapolation",
        "name": method,
        "model": f"runs/demo/{method}",
        "position_method": method,
        "protocol": protocol,
        "length_tokens": length_tokens,
        "stride_tokens": length_tokens if protocol == "nonoverlapping" else length_tokens // 2,
        "nats_per_token": nats,
        "perplexity": perplexity,
        "bits_per_byte": nats / math.log(2) / 3.1 if measured else None,
        "num_tokens": 65_536 if measured else None,
        "num_bytes": 203_161 if measured else None,
        "train_context_length": 128,
        "error": None if measured else "the learned table ends at 128 positions",
        "nats_by_position": by_position if measured else None,
        "provenance": PROVENANCE,
    }


def perplexity_record(method: str) -> dict[str, Any]:
    record = extrapolation_record(method, "sliding", 128)
    dropped = ("train_context_length", "error", "nats_by_position")
    return {key: value for key, value in record.items() if key not in dropped} | {"kind": "perplexity"}


def beta_record(mode: str, trial: int, beta: float, state: str = "COMPLETE") -> dict[str, Any]:
    bowl = 4.57 + (0.02 if mode == "retrain" else 0.09) * math.log2(beta / (0.5 if mode == "retrain" else 1.0)) ** 2
    by_seed = [bowl + 0.012 * math.sin(7 * trial + seed) for seed in range(3 if mode == "retrain" else 1)]
    nats = sum(by_seed) / len(by_seed) if state == "COMPLETE" else None
    return {
        "kind": "beta_trial",
        "mode": mode,
        "study": "demo",
        "trial": trial,
        "state": state,
        "beta": beta,
        "seeds": list(range(len(by_seed))),
        "nats_per_token": nats,
        "nats_per_token_by_seed": by_seed if nats else by_seed[:1],
        "perplexity": math.exp(nats) if nats else None,
        "provenance": PROVENANCE,
    }


def trained_beta_record(trainable: str, seed: int) -> dict[str, Any]:
    betas = [0.41 + 0.05 * seed, 0.72, 0.98, 1.31]
    return {
        "kind": "trained_beta",
        "study": "demo",
        "alibi_trainable": trainable,
        "seed": seed,
        "slopes_by_layer": [[beta / 2**head for head in range(2, 8)] for beta in betas],
        "beta_by_layer": betas,
        "nats_per_token": 4.575 + 0.004 * seed,
        "perplexity": math.exp(4.575 + 0.004 * seed),
        "provenance": PROVENANCE | {"seed": seed},
    }


def bias_record(num_heads: int = 6, num_positions: int = 32) -> dict[str, Any]:
    slopes = {6: [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]}.get(num_heads)
    slopes = slopes or [2 ** (-8 * head / num_heads) for head in range(1, num_heads + 1)]
    positions = range(num_positions)
    bias = [[[-slope * (i - j) if j <= i else None for j in positions] for i in positions] for slope in slopes]
    return {"kind": "bias_matrix", "name": "alibi", "slopes": slopes, "bias": bias, "provenance": PROVENANCE}


def bias_by_distance_record(method: str = "kerple", num_layers: int = 2, num_heads: int = 6) -> dict[str, Any]:
    distances = [0, *(2**power for power in range(10))]
    curves = [
        [[-math.log1p(distance) * (head + 1) / (layer + 1) for distance in distances] for head in range(num_heads)]
        for layer in range(num_layers)
    ]
    return {
        "kind": "bias_by_distance",
        "name": method,
        "position_method": method,
        "train_context_length": 128,
        "distances_tokens": distances,
        "bias_before": [[[0.5 + bias / 2 for bias in head] for head in layer] for layer in curves],
        "bias_after": curves,
        "provenance": PROVENANCE,
    }


def demo_records() -> list[dict[str, Any]]:
    """The records of a demo: every kind, including failures."""
    betas = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
    return [
        *(training_record(method) for method in CURVES),
        *(perplexity_record(method) for method in ("sinusoidal", "alibi")),
        *(
            extrapolation_record(method, protocol, length)
            for method in CURVES
            for protocol in ("nonoverlapping", "sliding")
            for length in LENGTHS
        ),
        *(beta_record(mode, n, beta) for mode in ("retrain", "posthoc") for n, beta in enumerate(betas)),
        beta_record("retrain", 8, 16.0, "PRUNED"),
        beta_record("retrain", 9, 1 / 32, "FAIL"),
        *(trained_beta_record("beta", seed) for seed in range(2)),
        trained_beta_record("slopes", 0),
        bias_record(),
        bias_by_distance_record(),
    ]
