# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""ALiBi as extra dimensions of queries and keys, for kernels that accept no bias. Exported to the Hub.

ALiBi adds ``s * (j - i)`` to a score. Softmax ignores any term that all keys of a query share, so ``s * (j - c)`` with
an arbitrary c is equivalent. That is the product of one number of the query and one of the key: one extra dimension.
It takes no other memory, works with any causal attention kernel, and yields gradients of the slopes through those of
the queries.

The result must stay exact in the kernel's number format:

* bfloat16 has 8 significant bits. Slopes are split into three pieces of that format, and distances into base-512
  digits from -256 to 255; two digits reach 131,072 tokens. Every product of a piece and a digit is exact in float32,
  in which kernels accumulate. Chunks of queries have their own c: sums near 16,000 nats round to 0.001.
* float32 and float64 represent every position exactly. There ``-s * (i - c)`` is added too, and the extra dimensions
  come first: a kernel that adds in order cancels the two large terms before it adds ``q . k``. Some kernels, such as
  those for a single query, add in another order. Shorter chunks therefore bound each term by slope times chunk length.
  The terms cancel in gradients, too, if the kernel does not scale: torch's would round one factor of each product.
* float16 ends at 65,504, below products of steep slopes and distances. It is computed in float32.

Shapes: B batch (or 1), H heads, Q queries, K keys, d head size.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from transformers.utils import is_tracing

from .attention_context import AttentionContext


_NUM_PIECES = 3
_BASE = 512
# Two digits reach this far: bfloat16 represents every integer up to 256.
_TWO_DIGITS_TOKENS = _BASE * _BASE // 2
# Kernels prefer head sizes that are multiples of eight.
_MULTIPLE = 8
_HALF_CHUNK_TOKENS = 2048
_CHUNK_TOKENS = 512


class AugmentedAttention:
    """ALiBi over all keys through extra dimensions of queries and keys.

    Args:
        context: Visibility and positions.
        slopes: ``(1 or B, 1 or Q, H)``, nats per token.
    """

    def __init__(self, context: AttentionContext, slopes: Tensor) -> None:
        positions, slots = (context.query_positions, context.key_positions), context.slots
        is_unpadded = slots is not None and slots.visible is None
        if is_unpadded or (not is_tracing(slopes) and context.segments() is not None):
            # Positions restart in every document; within a segment, slots have the same distances.
            positions = slots.queries[None], slots.keys[None]
        self.tensors = slopes, *positions
        is_square = context.is_whole and context.q_len == context.kv_len
        self.mask = None if is_square else context.mask()
        self._parts: dict[torch.device, list[_Part]] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        parts = self._parts.get(query.device)
        if parts is None:
            tensors = (tensor.to(query.device) for tensor in self.tensors)
            parts = _make_parts(*tensors, query.dtype, scaling)
            # Layers share these tensors unless the slopes are trained: a layer under activation checkpointing runs
            # twice and must save the same tensors both times.
            if not self.tensors[0].requires_grad:
                self._parts[query.device] = parts
        mask = None if self.mask is None else self.mask.to(query.device)
        return _attend_parts(query, key, value, parts, mask, scaling, dropout)


class _Part(NamedTuple):
    """Queries that share an origin c, the keys they read, and the extra dimensions of both.

    Attributes:
        queries: Queries of the call.
        keys: Keys, starting at the first.
        more_query: ``(B, H, Q, n)``.
        more_key: ``(B, 1, K, n)``.
    """

    queries: slice
    keys: slice
    more_query: Tensor
    more_key: Tensor


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
    """ALiBi attention through stock kernels, differentiable in all tensors including the slopes.

    Args:
        query: ``(B, H, Q, d)``.
        key: ``(B, H, K, d)``, like ``value``.
        value: ``(B, H, K, d)``.
        slopes: ``(1 or B, 1 or Q, H)``, nats per token.
        query_positions: ``(1 or B, Q)`` int64, tokens.
        key_positions: ``(1 or B, K)`` int64, tokens. A query must not see a key after its own.
        mask: Bool ``(1 or B, 1, Q, K)``, True where a query sees a key; None means plain causal attention with Q = K.
        scaling: Factor of ``q . k``.
        dropout: Dropout probability.

    Returns:
        ``(B, H, Q, d)``.
    """
    parts = _make_parts(slopes, query_positions, key_positions, query.dtype, scaling)
    return _attend_parts(query, key, value, parts, mask, scaling, dropout)


def _make_parts(
    slopes: Tensor, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype, scaling: float
) -> list[_Part]:
    dtype = _computing_dtype(dtype)
    is_half = dtype.itemsize < 4
    dimensions = _distance_digits if is_half else _distance_parts
    chunk_tokens = _HALF_CHUNK_TOKENS if is_half else _CHUNK_TOKENS
    slopes = slopes / scaling if is_half else slopes
    q_len, kv_len = query_positions.shape[-1], key_positions.shape[-1]
    # Compiled code stays one call, so that one graph serves all lengths.
    if torch.compiler.is_compiling() or q_len <= chunk_tokens:
        return [_Part(slice(None), slice(None), *dimensions(slopes, query_positions, key_positions, dtype))]
    parts = []
    for start in range(0, q_len, chunk_tokens):
        queries = slice(start, min(start + chunk_tokens, q_len))
        keys = slice(0, queries.stop + kv_len - q_len)
        chunk_slopes = slopes if slopes.shape[1] == 1 else slopes[:, queries]
        more = dimensions(chunk_slopes, query_positions[:, queries], key_positions[:, keys], dtype)
        parts.append(_Part(queries, keys, *more))
    return parts


def _attend_parts(
    query: Tensor, key: Tensor, value: Tensor, parts: list[_Part], mask: Tensor | None, scaling: float, dropout: float
) -> Tensor:
    dtype = _computing_dtype(query.dtype)
    if dtype.itemsize >= 4:
        query, scaling = query.to(dtype) * scaling, 1.0
    # Autocast would cast float32 back.
    with torch.autocast(query.device.type, enabled=False):
        output = _attend_each(query, key.to(dtype), value.to(dtype), parts, mask, scaling, dropout)
    return output.to(value.dtype)


def _computing_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float16 else dtype


def _attend_each(
    query: Tensor, key: Tensor, value: Tensor, parts: list[_Part], mask: Tensor | None, scaling: float, dropout: float
) -> Tensor:
    if len(parts) == 1:
        more = parts[0].more_query, parts[0].more_key
        return _attend(query, key, value, *more, mask, mask is None, scaling, dropout)
    outputs = []
    for queries, keys, *more in parts:
        num_queries, num_keys = queries.stop - queries.start, keys.stop
        chunk_mask = causal_lower_right(num_queries, num_keys) if mask is None else mask[:, :, queries, keys]
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
    """Attention with ``(B, H, Q, n)`` and ``(B, 1, K, n)`` prepended to the dimensions of queries and keys."""
    head_dim = query.shape[-1]
    padding = -(head_dim + more_query.shape[-1]) % _MULTIPLE
    output = F.scaled_dot_product_attention(
        _extend(more_query, query, padding),
        _extend(more_key, key, padding),
        # The fast kernels require values as wide as keys.
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
    """``(B, H, Q, n)`` and ``(B, 1, K, n)`` in float32 or float64 whose dot product is ``s * (j - i)``."""
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
    """``(B, H, Q, n)`` and ``(B, 1, K, n)`` in bfloat16 whose dot product is ``s * (j - c)``.

    c is the position of the last query.
    """
    # No visible key is further away than this; masked keys may have any position.
    distance = (query_positions.amax(-1, keepdim=True) - key_positions).clamp(min=0, max=key_positions.shape[-1])
    # One graph serves all lengths.
    num_digits = 2 if not is_tracing(distance) and distance.shape[-1] <= _TWO_DIGITS_TOKENS else 3
    from_query, from_key = [], []
    for piece in _pieces(-slopes.transpose(1, 2), dtype):
        for place, digit in enumerate(_digits(distance, num_digits)):
            from_query.append((piece * _BASE**place).to(dtype))
            from_key.append(digit.to(dtype))
    more_query = torch.stack(from_query, dim=-1)
    return more_query.expand(-1, -1, query_positions.shape[-1], -1), torch.stack(from_key, dim=-1)[:, None]


def _pieces(slopes: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Split slopes into ``_NUM_PIECES`` numbers of a shorter format, each the leading bits of the remainder."""
    pieces, rest = [], slopes
    for _ in range(_NUM_PIECES):
        # Rounding has no gradient; the whole gradient flows through the first piece.
        piece = _leading_bits(rest.detach(), dtype)
        pieces.append(piece if pieces else piece + (slopes - slopes.detach()))
        rest = rest - piece
    return pieces


def _leading_bits(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Truncate values to the bits of a shorter format.

    It masks bits because a compiler may elide a cast to a shorter format and back. Inductor does: the first piece
    would then be the whole slope, and float32 would round its product with a position.
    """
    num_cut = round(math.log2(torch.finfo(dtype).eps / torch.finfo(values.dtype).eps))
    integers = values.view(torch.int64 if values.dtype == torch.float64 else torch.int32)
    return (integers & -(1 << num_cut)).view(values.dtype)


def _digits(distance: Tensor, num_digits: int) -> list[Tensor]:
    """Base-512 digits from -256 to 255, lowest first; two are exact to 131,072 tokens, three to 67 million."""
    digits, rest = [], distance
    for _ in range(num_digits - 1):
        digits.append((rest + _BASE // 2) % _BASE - _BASE // 2)
        rest = (rest - digits[-1]) // _BASE
    return [*digits, rest]


def _extend(more: Tensor, states: Tensor, padding: int) -> Tensor:
    """``(B, H, T, n + d + padding)``: the extra dimensions first, zeros last."""
    more = more.expand(*states.shape[:-1], -1)
    return torch.cat((more, F.pad(states, (0, padding))), dim=-1)
