"""The bias of a model as a record that can be drawn."""

from typing import Any

import torch
from transformers import PreTrainedModel

from modeling_alibi_gpt.reporting.records import provenance


DRAWN_LENGTH_TOKENS = 32


def bias_matrix_records(model: PreTrainedModel, name: str) -> list[dict[str, Any]]:
    """One ``bias_matrix`` record, of the first layer; none for a model whose positions are no bias with slopes.

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
