"""Reference for token-exact scoring: contexts from the definition of each protocol, losses from plain calls."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def context_start(prediction: int, num_predictions: int, length: int, stride: int | None) -> int:
    """Start of the context of a prediction, by the definition of its protocol."""
    if stride is None:
        return prediction // length * length
    stop = min(length, num_predictions)
    while stop <= prediction:
        stop = min(stop + stride, num_predictions)
    return max(0, stop - length)


@torch.no_grad()
def reference_nats(model: PreTrainedModel, ids: Tensor, length: int, stride: int | None) -> tuple[Tensor, float]:
    """The loss of every prediction in float64, from one plain call per window, and the largest logit."""
    num_predictions = len(ids) - 1
    nats, largest = torch.zeros(num_predictions, dtype=torch.float64), 0.0
    stops = {}
    for i in range(num_predictions):
        stops[context_start(i, num_predictions, length, stride)] = i + 1
    done = 0
    for start, stop in stops.items():
        logits = model(ids[None, start:stop], use_cache=False).logits[0]
        losses = nn.functional.cross_entropy(logits, ids[start + 1 : stop + 1], reduction="none")
        nats[done:stop] = losses[done - start :]
        largest = max(largest, logits.abs().max().item())
        done = stop
    return nats, largest
