"""Probes of a model on a text: attention of a head, loss by position, next-token probabilities.

Shapes: T tokens of the text, V vocabulary.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from modeling_alibi_gpt.modeling_alibi_gpt import AlibiGPTForCausalLM
from modeling_alibi_gpt.training.beta_schedule import set_alibi_beta


@dataclass(frozen=True, kw_only=True)
class HeadAttention:
    """Attention weights of one head, both ``(T, T)`` float32. Rows are queries and sum to 1.

    Attributes:
        with_bias: Weights as the model computes them.
        without_bias: Weights from the same queries and keys without the bias of this layer.
    """

    with_bias: Tensor
    without_bias: Tensor


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """A candidate next token and its probability with two values of beta."""

    text: str
    probability: float
    changed_probability: float


@contextmanager
def trying_beta(model: AlibiGPTForCausalLM, beta: float) -> Iterator[None]:
    """Set another beta on a model without changing its weights, and restore its own beta at the end.

    Raises:
        ValueError: As in :func:`set_alibi_beta`.
    """
    own = model.config.alibi_beta
    set_alibi_beta(model, beta)
    try:
        yield
    finally:
        set_alibi_beta(model, own)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Encode a text as ``(1, T)`` int64.

    Raises:
        ValueError: The text has fewer than two tokens.
    """
    input_ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids.long()
    if input_ids.shape[1] < 2:
        raise ValueError(f"expected a text of at least 2 tokens, got {input_ids.shape[1]}")
    return input_ids


@torch.inference_mode()
def head_attention(model: AlibiGPTForCausalLM, input_ids: Tensor, layer: int, head: int) -> HeadAttention:
    """Compute the attention of one head over a text ``(1, T)``, with and without bias; layer and head count from 0.

    Raises:
        ValueError: The layer or head does not exist.
    """
    config = model.config
    for name, index, count in (
        ("layer", layer, config.num_hidden_layers),
        ("head", head, config.num_attention_heads),
    ):
        if not 0 <= index < count:
            raise ValueError(f"{name} must be from 0 to {count - 1}, got {index}")
    attention = model.model.layers[layer].self_attn
    hidden_states: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda _, args: hidden_states.append(args[0]))
    try:
        model.model(input_ids=input_ids, use_cache=False)
    finally:
        hook.remove()
    method, positions = model.model.position_method, torch.arange(input_ids.shape[1])[None]
    query, key, _ = attention.project(hidden_states[0])
    query, key = method.rotate(query, key, positions)
    scores = (query[0, head] @ key[0, head // attention.num_key_value_groups].T).float() * attention.scaling
    is_future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    bias = _head_bias(model, layer, head, positions)
    weights = [(scores + term).masked_fill_(is_future, -torch.inf).softmax(-1) for term in (bias, 0.0)]
    return HeadAttention(with_bias=weights[0], without_bias=weights[1])


@torch.inference_mode()
def position_nats(model: AlibiGPTForCausalLM, input_ids: Tensor) -> Tensor:
    """Loss ``(T - 1,)`` float32, nats. Entry p is the loss of token ``p + 1`` given the ``p + 1`` tokens before it."""
    logits = model(input_ids=input_ids, use_cache=False).logits[0, :-1].float()
    return F.cross_entropy(logits, input_ids[0, 1:], reduction="none")


def bin_positions(nats: Tensor) -> list[tuple[int, int, float]]:
    """Mean loss as (first position, end, nats per token) in bins with edges 0, 1, 2, 4 ... T - 1."""
    length = len(nats)
    edges = [0, *(2**power for power in range(length.bit_length()) if 2**power < length), length]
    return [(start, stop, nats[start:stop].mean().item()) for start, stop in itertools.pairwise(edges)]


@torch.inference_mode()
def next_tokens(
    model: AlibiGPTForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,
    beta: float,
    num_tokens: int = 10,
) -> list[NextToken]:
    """Return the most likely next tokens under another beta, most likely first, with their original probabilities.

    Raises:
        ValueError: As in :func:`trying_beta`.
    """
    own = _next_probabilities(model, input_ids)
    with trying_beta(model, beta):
        changed = _next_probabilities(model, input_ids)
    best = changed.topk(min(num_tokens, len(changed))).indices.tolist()
    return [
        NextToken(
            text=tokenizer.decode([token]), probability=own[token].item(), changed_probability=changed[token].item()
        )
        for token in best
    ]


def pool_attention(weights: Tensor, max_cells: int = 128) -> Tensor:
    """Pool weights ``(T, T)`` to at most ``max_cells`` rows and columns: sum over keys, mean over queries."""
    length = weights.shape[0]
    size = -(-length // max_cells)
    cells = -(-length // size)
    columns = F.pad(weights, (0, cells * size - length)).unflatten(1, (cells, size)).sum(-1)
    return torch.stack([rows.mean(0) for rows in columns.split(size)])


def mean_distance(weights: Tensor) -> float:
    """Mean attention distance in tokens: weight times distance, averaged over queries."""
    positions = torch.arange(weights.shape[0], dtype=torch.float32)
    return (positions - weights @ positions).mean().item()


def bits_per_byte(nats: Tensor, tokenizer: PreTrainedTokenizerBase, input_ids: Tensor) -> float:
    """Bits per UTF-8 byte of the scored tokens, comparable across tokenizers."""
    num_bytes = len(tokenizer.decode(input_ids[0, 1:].tolist()).encode("utf-8"))
    return nats.sum().item() / max(1, num_bytes) / torch.log(torch.tensor(2.0)).item()


def _head_bias(model: AlibiGPTForCausalLM, layer: int, head: int, positions: Tensor) -> Tensor | float:
    """Bias ``(T, T)`` float32 of one head, or 0 if the model has no bias."""
    method = model.model.position_method
    if not method.has_bias:
        return 0.0
    rows: Sequence[Tensor] = [
        method.bias(layer, some, positions, torch.float32)[0, head] for some in positions.split(256, dim=1)
    ]
    return torch.cat(list(rows))


def _next_probabilities(model: AlibiGPTForCausalLM, input_ids: Tensor) -> Tensor:
    return model(input_ids=input_ids, use_cache=False, logits_to_keep=1).logits[0, -1].float().softmax(-1)
