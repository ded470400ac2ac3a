"""Measure whether bfloat16 autocast is faster than float32 for a model on this machine."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


NUM_REPEATS = 3


def faster_precision(model: PreTrainedModel, batch: Mapping[str, Any]) -> dict[str, float | str]:
    """Time forward and backward pass in float32 and under bfloat16 autocast, alternately, and choose the faster.

    The weights and the random state are unchanged afterwards; gradients are cleared.

    Args:
        model: The model, on its training device.
        batch: Keyword arguments of its forward pass, including labels.

    Returns:
        ``precision`` (``float32`` or ``bfloat16``) and the median seconds of a step in each.
    """
    model.train()
    inputs = {name: each.to(model.device) if isinstance(each, Tensor) else each for name, each in batch.items()}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        for _ in range(NUM_REPEATS + 1):
            for autocast in (False, True):
                seconds[autocast].append(_step_seconds(model, inputs, autocast))
    # Skip the first pass of each, which warms up caches and kernels.
    float32, bfloat16 = (statistics.median(seconds[autocast][1:]) for autocast in (False, True))
    return {
        "precision": "bfloat16" if bfloat16 < float32 else "float32",
        "float32_step_seconds": float32,
        "bfloat16_step_seconds": bfloat16,
    }


def _step_seconds(model: PreTrainedModel, inputs: Mapping[str, Any], autocast: bool) -> float:
    _synchronize(model.device)
    start = time.perf_counter()
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=autocast):
        loss = model(**inputs).loss
    loss.backward()
    _synchronize(model.device)
    elapsed = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return elapsed


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
