# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Language modeling loss in chunks, without materializing the logits of a whole batch. Exported to the Hub.

Shapes: B batch, T tokens, D hidden size, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


IGNORED_LABEL = -100
# For `auto_docstring`, which does not know this argument of the model.
LOSS_CHUNK_DOCS = r"""
    loss_chunk_tokens (`int`, *optional*):
        With `labels`, compute the loss this many tokens at a time and return no logits.
"""


def chunked_causal_lm_loss(
    hidden_states: Tensor,
    head: nn.Module,
    labels: Tensor,
    chunk_tokens: int,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels: Tensor | None = None,
) -> Tensor:
    """Next-token cross entropy in nats per token, equal to ``ForCausalLMLoss`` of transformers.

    Logits are materialized for ``chunk_tokens`` tokens at a time. The backward pass recomputes them, which adds a
    third to the work of the head. ``torch.nn.functional.linear_cross_entropy`` avoids that, but returns the loss of a
    bfloat16 model in bfloat16, and computes in float32 under autocast.

    Args:
        hidden_states: ``(B, T, D)``, input of the head.
        head: Maps ``(N, D)`` to logits ``(N, V)``.
        labels: ``(B, T)``, unshifted token ids; -100 is ignored.
        chunk_tokens: Number of tokens whose logits exist at once, at least 1.
        num_items_in_batch: Number of tokens to divide by; None means the number of predicted tokens.
        shift_labels: ``(B, T)``, the next token of each, instead of ``labels``.

    Raises:
        ValueError: ``chunk_tokens`` is below 1.
    """
    if chunk_tokens < 1:
        raise ValueError(f"loss_chunk_tokens must be at least 1, got {chunk_tokens}")
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=IGNORED_LABEL)[..., 1:]
    targets = shift_labels.reshape(-1).to(hidden_states.device)
    states = hidden_states.reshape(-1, hidden_states.shape[-1])
    chunks = zip(states.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
    nats = sum(checkpoint(_summed_nats, head, *chunk, use_reentrant=False) for chunk in chunks)
    if num_items_in_batch is None:
        num_items_in_batch = (targets != IGNORED_LABEL).sum()
    elif isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(nats.device)
    return nats / num_items_in_batch


def _summed_nats(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(head(states).float(), targets, ignore_index=IGNORED_LABEL, reduction="sum")
