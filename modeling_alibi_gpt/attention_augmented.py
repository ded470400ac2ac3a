# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""ALiBi as a few more dimensions of queries and keys, for kernels that take no bias. Travels to the Hub.

A query sees the score of a key shifted by ``s * (j - i)``, and the softmax does not see a part that all its keys
share. So ``s * (j - c)`` with any c is all that is needed, and that is a product of one number of the query and one
of the key: a dimension more. It costs no memory beyond that, any kernel of plain causal attention will do, and
gradients of the slopes come with those of the queries.

What is exact on paper must stay so in the kernel's number format:

* bfloat16 and float16 hold 8 and 11 bits. Slopes are split into three pieces of the format, distances into digits of
  base 256; every product of a piece and a digit is exact in the float32 in which kernels add. Each chunk of queries
  has its own c, for a sum near 16,000 nats would round a score to 0.001.
* float32 and float64 hold every position. There ``-s * (i - c)`` is added, and the new dimensions come first: in a
  kernel that adds in order, the two large numbers have cancelled before ``q . k`` is added. Some kernels add in other
  orders, those for a single query for one. Hence chunks, shorter ones: no number is larger than the slope times those.

Shapes: B batch (or 1), H heads, Q queries, K keys, d head size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from transformers.utils import is_tracing

from .attention_context import AttentionContext


_NUM_PIECES = 3
_BASE = 256
_NUM_DIGITS = 3
# Kernels prefer head sizes of a multiple of eight.
_MULTIPLE = 8
_HALF_CHUNK_TOKENS = 2048
_CHUNK_TOKENS = 128


class AugmentedAttention:
    """ALiBi over all keys, by more dimensions of queries and keys.

    Args:
        context: Who sees whom, and where they stand.
        slopes: ``(1 or B, 1 or Q, H)``, nats per token.
    """

    def __init__(self, context: AttentionContext, slopes: Tensor) -> None:
        positions = context.query_positions, context.key_positions
        if not is_tracing(slopes) and context.spans() is not None:
            # Within a span slots are as far apart as positions, which begin anew in every document: far from others.
            slots = torch.arange(context.kv_len, device=slopes.device)[None]
            positions = slots[:, context.kv_len - context.q_len :], slots
        self.tensors = slopes, *positions
        is_square = context.is_whole and context.q_len == context.kv_len
        self.mask = None if is_square else context.mask()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        tensors = (tensor.to(query.device) for tensor in self.tensors)
        return augmented_attention(query, key, value, *tensors, self.mask, scaling, dropout)


def augmented_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """Attention with ALiBi through stock kernels, differentiable in everything, slopes too.

    Args:
        query: ``(B, H, Q, d)``.
        key: ``(B, H, K, d)``, like ``value``.
        value: ``(B, H, K, d)``.
        slopes: ``(1 or B, 1 or Q, H)``, nats per token.
        query_positions: ``(1 or B, Q)`` int64, tokens.
        key_positions: ``(1 or B, K)`` int64, tokens; a query must see none that lies after it.
        mask: Bool ``(1 or B, 1, Q, K)``, True where a query sees a key; None means plain causal attention, Q = K.
        scaling: What multiplies ``q . k``.
        dropout: Probability.

    Returns:
        ``(B, H, Q, d)``.
    """
    is_half = query.dtype.itemsize < 4
    dimensions = _distance_digits if is_half else _distance_parts
    chunk_tokens = _HALF_CHUNK_TOKENS if is_half else _CHUNK_TOKENS
    # What torch compiles stays one call, so that one graph serves all lengths.
    if query.shape[2] <= chunk_tokens or torch.compiler.is_compiling():
        more = dimensions(slopes / scaling, query_positions, key_positions, query.dtype)
        return _attend(query, key, value, *more, mask, mask is None, scaling, dropout)
    outputs = []
    offset = key.shape[2] - query.shape[2]
    for start in range(0, query.shape[2], chunk_tokens):
        queries = slice(start, min(start + chunk_tokens, query.shape[2]))
        keys = slice(0, queries.stop + offset)
        chunk_slopes = slopes if slopes.shape[1] == 1 else slopes[:, queries]
        more = dimensions(chunk_slopes / scaling, query_positions[:, queries], key_positions[:, keys], query.dtype)
        chunk_mask = causal_lower_right(queries.stop - start, keys.stop) if mask is None else mask[:, :, queries, keys]
        states = query[:, :, queries], key[:, :, keys], value[:, :, keys]
        outputs.append(_attend(*states, *more, chunk_mask, False, scaling, dropout))
    return torch.cat(outputs, dim=2)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    more_query: Tensor,
    more_key: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scaling: float,
    dropout: float,
) -> Tensor:
    """Attention with the dimensions ``(B, H, Q, n)`` and ``(B, 1, K, n)`` put before those of queries and keys."""
    head_dim = query.shape[-1]
    padding = -(head_dim + more_query.shape[-1]) % _MULTIPLE
    output = F.scaled_dot_product_attention(
        _extend(more_query, query, padding),
        _extend(more_key, key, padding),
        # The fast kernels want values as wide as keys.
        F.pad(value, (0, more_query.shape[-1] + padding)),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scaling,
    )
    return output[..., :head_dim]


def _distance_parts(
    slopes: Tensor, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``(B, H, Q, n)`` and ``(B, 1, K, n)`` of float32 or float64, whose products add up to ``s * (j - i)``."""
    last = query_positions.amax(-1, keepdim=True)
    keys, queries = (key_positions - last).to(dtype), (query_positions - last)[:, None].to(dtype)
    from_query, from_key = [], []
    for piece in _pieces(slopes.transpose(1, 2), torch.float32 if dtype == torch.float64 else torch.bfloat16):
        from_query += [piece.to(dtype).expand(-1, -1, queries.shape[-1]), -piece.to(dtype) * queries]
        from_key += [keys, torch.ones_like(keys)]
    return torch.stack(torch.broadcast_tensors(*from_query), dim=-1), torch.stack(from_key, dim=-1)[:, None]


def _distance_digits(
    slopes: Tensor, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``(B, H, Q, n)`` and ``(B, 1, K, n)`` of a short format, whose products add up to ``s * (j - c)``.

    c is the last query's position. Factors are shared out so that neither side leaves the range of float16.
    """
    distance = (query_positions.amax(-1, keepdim=True) - key_positions).clamp(min=0)
    from_query, from_key = [], []
    for piece in _pieces(-slopes.transpose(1, 2), dtype):
        for power, digit in enumerate(_digits(distance)):
            from_query.append((piece * _BASE ** min(power, 1)).to(dtype))
            from_key.append((digit * _BASE ** max(power - 1, 0)).to(dtype))
    more_query = torch.stack(from_query, dim=-1)
    return more_query.expand(-1, -1, query_positions.shape[-1], -1), torch.stack(from_key, dim=-1)[:, None]


def _pieces(slopes: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Numbers that the short format holds, of which each is what the ones before it left of the slopes."""
    pieces, rest = [], slopes
    for _ in range(_NUM_PIECES):
        # The rounding has no gradient of its own: all of it goes through the first piece.
        piece = _leading_bits(rest.detach(), dtype)
        pieces.append(piece if pieces else piece + (slopes - slopes.detach()))
        rest = rest - piece
    return pieces


def _leading_bits(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values cut to as many bits as a shorter format holds.

    Bit by bit, because a compiler may leave out a cast to a short format and back: Inductor does, and then the first
    piece is all of a slope, whose product with a position float32 rounds.
    """
    num_cut = round(math.log2(torch.finfo(dtype).eps / torch.finfo(values.dtype).eps))
    integers = values.view(torch.int64 if values.dtype == torch.float64 else torch.int32)
    return (integers & -(1 << num_cut)).view(values.dtype)


def _digits(distance: Tensor) -> list[Tensor]:
    """Three digits of base 256, the lowest first: exact to 16 million tokens."""
    return [distance // _BASE**power % _BASE for power in range(_NUM_DIGITS)]


def _extend(more: Tensor, states: Tensor, padding: int) -> Tensor:
    """``(B, H, T, n + d + padding)``: the new dimensions first, zeros last."""
    more = more.expand(*states.shape[:-1], -1)
    return torch.cat((more, F.pad(states, (0, padding))), dim=-1)
