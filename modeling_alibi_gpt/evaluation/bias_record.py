"""Records of a model's position bias: matrices of ALiBi, curves by head and distance, and learned slopes."""

import math
from typing import Any

import torch
from transformers import PreTrainedModel

from modeling_alibi_gpt.runtime.records import provenance


DRAWN_LENGTH_TOKENS = 32
DRAWN_TIMES_TRAINED = 4
POINTS_PER_OCTAVE = 4


def bias_matrix_records(model: PreTrainedModel, name: str) -> list[dict[str, Any]]:
    """Return one ``bias_matrix`` record for the first layer; none for a model without ALiBi slopes.

    Args:
        model: A causal language model.
        name: Name in the record.
    """
    positions = getattr(model.base_model, "position_method", None)
    if positions is None or not hasattr(positions, "layer_slopes"):
        return []
    steps = torch.arange(DRAWN_LENGTH_TOKENS, device=model.device)[None]
    with torch.no_grad():
        bias = positions.bias(0, steps, steps, torch.float32)[0].tolist()
        slopes = positions.layer_slopes(0).tolist()
    visible = [[row[: query + 1] + [None] * (len(row) - query - 1) for query, row in enumerate(head)] for head in bias]
    return [{"kind": "bias_matrix", "name": name, "slopes": slopes, "bias": visible, "provenance": provenance()}]


def learned_slopes(model: PreTrainedModel) -> dict[str, Any]:
    """Return the trained ``slopes_by_layer``, and ``beta_by_layer`` if only beta was trained.

    Args:
        model: A causal AlibiGPT whose ``alibi_trainable`` is ``beta`` or ``slopes``.
    """
    positions = model.model.position_method
    layers = range(model.config.num_hidden_layers)
    return {
        "slopes_by_layer": [positions.layer_slopes(layer).tolist() for layer in layers],
        "beta_by_layer": positions.bias_log_beta.exp().tolist() if model.config.alibi_trainable == "beta" else None,
    }


def bias_by_distance(model: PreTrainedModel) -> list[list[list[float]]] | None:
    """Return the bias of each layer and head, in nats, at each of ``drawn_distances``; None for a model without bias.

    The query is the last one of a text of ``DRAWN_TIMES_TRAINED`` training lengths. A bias that all layers share is
    returned as one layer.

    Args:
        model: A causal language model.
    """
    positions = getattr(model.base_model, "position_method", None)
    if positions is None or not positions.has_bias:
        return None
    distances = torch.tensor(drawn_distances(model.config.train_context_length), device=model.device)
    query = distances[None, -1:]
    num_layers = model.config.num_hidden_layers if positions.bias_differs_by_layer else 1
    with torch.no_grad():
        rows = [positions.bias(layer, query, query - distances, torch.float32)[0, :, 0] for layer in range(num_layers)]
    return torch.stack(rows).tolist()


def bias_by_distance_records(
    model: PreTrainedModel, name: str, before: list[list[list[float]]] | None
) -> list[dict[str, Any]]:
    """Return one ``bias_by_distance`` record; none for a model without a bias.

    Args:
        model: A trained causal language model.
        name: Name in the record.
        before: Result of ``bias_by_distance`` before training.
    """
    after = bias_by_distance(model)
    if after is None:
        return []
    record = {
        "kind": "bias_by_distance",
        "name": name,
        "position_method": model.config.position_method,
        "train_context_length": model.config.train_context_length,
        "distances_tokens": drawn_distances(model.config.train_context_length),
        "bias_before": before,
        "bias_after": after,
        "provenance": provenance(),
    }
    return [record]


def drawn_distances(train_context_length: int) -> list[int]:
    """Distances in tokens from 0 to ``DRAWN_TIMES_TRAINED`` training lengths, evenly spaced on a log scale."""
    longest = DRAWN_TIMES_TRAINED * train_context_length
    num_points = int(POINTS_PER_OCTAVE * math.log2(longest)) + 1
    return sorted({0, longest, *(round(2 ** (point / POINTS_PER_OCTAVE)) for point in range(num_points))})
