# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Triton kernels of fused ALiBi attention: the gradients. Exported to the Hub.

One kernel keeps a tile of queries and reads keys; the other keeps a tile of keys and reads queries. Both compute the
attention weights again from the logs of the softmax denominators. They skip the tiles that the forward kernel skipped.

Shapes: B batch, H heads, H_kv key/value heads, Q queries, K keys, d head size, D the next power of two, M tiles of
queries. Queries are the last Q of K tokens. Arguments named as in
:func:`~modeling_alibi_gpt.attention_kernels.forward_kernel` are the same; ``directions`` are the gradients of the
output.
"""

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(f"fused attention needs the package triton: {error}") from error

from .attention_kernels import LOG2_E, QUERY_TOKENS, head_of, load_first_keys, load_tile, sees, store_tile


# Tiles of queries whose first keys are compared at once.
_NUM_STARTS = tl.constexpr(128)


@triton.jit
def _read_keys(
    gradient, moments, q, d, shift, delta, states, strides, place, bias, start, stop,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, KEYS: tl.constexpr,
    IS_CUT: tl.constexpr, HAS_FIRST_KEYS: tl.constexpr, LEARNS_SLOPES: tl.constexpr,
):  # fmt: skip
    """Add what the keys from ``start`` up to ``stop`` contribute to the gradients of a tile of queries, and to the
    sums of distances times gradients of scores."""
    for at in tl.range(start, stop, KEYS):
        keys = at + tl.arange(0, KEYS)
        k = load_tile(states[0], at, strides[0], place[2], HEAD_DIM, KEYS, DIMS, IS_CUT)
        v = load_tile(states[1], at, strides[1], place[2], HEAD_DIM, KEYS, DIMS, IS_CUT)
        biases = (bias[1] * (keys - bias[2]))[None, :] + shift[:, None]
        weights = tl.exp2(tl.dot(q, tl.trans(k)) * bias[0] + biases)
        if IS_CUT or HAS_FIRST_KEYS:
            is_seen = sees(place[0][:, None], place[1][:, None], keys[None, :], HAS_FIRST_KEYS)
            weights = tl.where(is_seen, weights, 0.0)
        changes = weights * (tl.dot(d, tl.trans(v)) - delta[:, None])
        if LEARNS_SLOPES:
            moments += tl.sum(changes * (keys[None, :] - place[0][:, None]), 1)
        gradient = tl.dot(changes.to(k.dtype), k, gradient)
    return gradient, moments


@triton.jit
def query_gradients_kernel(
    states, strides, slopes, first_keys, saved, results, sizes, scaling,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HAS_FIRST_KEYS: tl.constexpr, LEARNS_SLOPES: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of queries, and its part of those of the slopes.

    Args:
        states: Queries, keys, values, output and directions.
        strides: Strides of these five and of the gradients.
        slopes: See the forward kernel.
        first_keys: See the forward kernel.
        saved: Logs of the softmax denominators and first keys of the tiles, from the forward kernel.
        results: Where to write the gradients of the queries; the sums over d of output times direction ``(B, H, Q)``,
            which the other kernel reads; and the parts of the gradients of the slopes ``(B, H, number of tiles)``, if
            ``LEARNS_SLOPES``.
        sizes: See the forward kernel.
        scaling: Factor of ``q . k``.
    """
    num_tiles = tl.cdiv(sizes[2], QUERIES)
    tile, index = num_tiles - 1 - tl.program_id(0) % num_tiles, tl.program_id(0) // num_tiles
    row, head = index // sizes[0], index % sizes[0]
    at, offset, kv_head = tile * QUERIES, sizes[3] - sizes[2], head // sizes[1]
    queries, stop = at + tl.arange(0, QUERIES), tl.minimum(at + QUERIES + offset, sizes[3])
    bias = scaling * LOG2_E, tl.load(slopes[0] + row * slopes[1] + head) * LOG2_E, stop - 1
    q, o, d = _load_three(states, strides, row, head, at, sizes[2], HEAD_DIM, QUERIES, DIMS)
    delta = tl.sum(o.to(tl.float32) * d.to(tl.float32), 1)
    tl.store(results[1] + index * sizes[2] + queries, delta, mask=queries < sizes[2])
    log_sums = tl.load(saved[0] + index * sizes[2] + queries, mask=queries < sizes[2], other=float("inf"))
    shift = bias[1] * (bias[2] - queries - offset) - log_sums
    first_seen = load_first_keys(first_keys, row, queries, queries + offset, sizes[2], HAS_FIRST_KEYS)
    place, token_strides = (queries + offset, first_seen, sizes[3]), (strides[1][2], strides[2][2])
    others = head_of(states[1], strides[1], row, kv_head), head_of(states[2], strides[2], row, kv_head)
    start = tl.load(saved[1] + index * tl.cdiv(sizes[2], QUERY_TOKENS) + at // QUERY_TOKENS) // KEYS * KEYS
    cut = tl.maximum((at + offset + 1) // KEYS * KEYS, start)
    gradient, moments = tl.zeros([QUERIES, DIMS], tl.float32), tl.zeros([QUERIES], tl.float32)
    gradient, moments = _read_keys(
        gradient, moments, q, d, shift, delta, others, token_strides, place, bias, start, cut,
        HEAD_DIM, DIMS, KEYS, False, HAS_FIRST_KEYS, LEARNS_SLOPES,
    )  # fmt: skip
    gradient, moments = _read_keys(
        gradient, moments, q, d, shift, delta, others, token_strides, place, bias, cut, stop,
        HEAD_DIM, DIMS, KEYS, True, HAS_FIRST_KEYS, LEARNS_SLOPES,
    )  # fmt: skip
    result = head_of(results[0], strides[5], row, head)
    store_tile(result, at, strides[5][2], sizes[2], gradient * scaling, HEAD_DIM, QUERIES, DIMS)
    if LEARNS_SLOPES:
        tl.store(results[2] + index * num_tiles + tile, tl.sum(moments, 0))


@triton.jit
def _load_three(
    states, strides, row, head, at, q_len, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr, DIMS: tl.constexpr
):
    """A tile of queries, of the output and of the directions."""
    q = load_tile(head_of(states[0], strides[0], row, head), at, strides[0][2], q_len, HEAD_DIM, QUERIES, DIMS, True)
    o = load_tile(head_of(states[3], strides[3], row, head), at, strides[3][2], q_len, HEAD_DIM, QUERIES, DIMS, True)
    d = load_tile(head_of(states[4], strides[4], row, head), at, strides[4][2], q_len, HEAD_DIM, QUERIES, DIMS, True)
    return q, o, d


@triton.jit
def _stop_query(starts, num_tiles, first, key_stop):
    """End of the last tile of queries that reads a key before ``key_stop``; tiles before ``first`` are ignored."""
    last = first - 1
    for at in tl.range(first, num_tiles, _NUM_STARTS):
        tiles = at + tl.arange(0, _NUM_STARTS)
        start = tl.load(starts + tiles, mask=tiles < num_tiles, other=2**30)
        last = tl.maximum(last, tl.max(tl.where(start < key_stop, tiles, -1), 0))
    return (last + 1) * QUERY_TOKENS


@triton.jit
def _read_queries(
    gradients, k, v, others, strides, place, bias, start, stop,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, QUERIES: tl.constexpr,
    IS_CUT: tl.constexpr, HAS_FIRST_KEYS: tl.constexpr,
):  # fmt: skip
    """Add what the queries from ``start`` up to ``stop`` contribute to the gradients of a tile of keys and values.

    Args:
        gradients: Gradients of keys and of values so far.
        k: The keys.
        v: The values.
        others: Pointers to one head's queries, directions, logs of softmax denominators and sums of output times
            direction.
        strides: Strides per token of queries and directions.
        place: Numbers of the keys, number of the row, first keys, Q, and K - Q.
        bias: Factor of ``q . k`` and slope, in log 2.
        start: First query.
        stop: End of the queries. If not ``IS_CUT``, it ends a tile, and every query follows every key.
    """
    key_gradient, value_gradient = gradients
    keys, row, first_keys, q_len, offset = place
    for at in tl.range(start, stop, QUERIES):
        queries = at + tl.arange(0, QUERIES)
        q = load_tile(others[0], at, strides[0], q_len, HEAD_DIM, QUERIES, DIMS, IS_CUT)
        d = load_tile(others[1], at, strides[1], q_len, HEAD_DIM, QUERIES, DIMS, IS_CUT)
        log_sums = tl.load(others[2] + queries, mask=queries < q_len, other=float("inf"))
        delta = tl.load(others[3] + queries, mask=queries < q_len, other=0.0)
        own_keys = queries + offset
        origin = at + QUERIES - 1 + offset
        shift = bias[1] * (origin - own_keys) - log_sums
        biases = (bias[1] * (keys - origin))[:, None] + shift[None, :]
        weights = tl.exp2(tl.dot(k, tl.trans(q)) * bias[0] + biases)
        if IS_CUT or HAS_FIRST_KEYS:
            first_seen = load_first_keys(first_keys, row, queries, own_keys, q_len, HAS_FIRST_KEYS)
            is_seen = sees(own_keys[None, :], first_seen[None, :], keys[:, None], HAS_FIRST_KEYS)
            weights = tl.where(is_seen, weights, 0.0)
        value_gradient = tl.dot(weights.to(d.dtype), d, value_gradient)
        changes = weights * (tl.dot(v, tl.trans(d)) - delta[None, :])
        key_gradient = tl.dot(changes.to(q.dtype), q, key_gradient)
    return key_gradient, value_gradient


@triton.jit
def _read_head(
    gradients, k, v, others, strides, place, bias, starts, at, sizes,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HAS_FIRST_KEYS: tl.constexpr,
):  # fmt: skip
    """Add what one query head contributes. ``starts`` points to the first keys of its tiles; ``at`` is the first."""
    offset, num_tiles = sizes[3] - sizes[2], tl.cdiv(sizes[2], QUERY_TOKENS)
    start = tl.maximum(at - offset, 0) // QUERIES * QUERIES
    stop = tl.minimum(_stop_query(starts, num_tiles, start // QUERY_TOKENS, at + KEYS), sizes[2])
    # From here on, queries follow every key. The last tile of queries may be shorter.
    cut = tl.cdiv(tl.maximum(at + KEYS - 1 - offset, 0), QUERIES) * QUERIES
    cut = tl.maximum(tl.minimum(cut, stop), start)
    tail = tl.maximum(stop // QUERIES * QUERIES, cut)
    gradients = _read_queries(
        gradients, k, v, others, strides, place, bias, start, cut, HEAD_DIM, DIMS, QUERIES, True, HAS_FIRST_KEYS
    )
    gradients = _read_queries(
        gradients, k, v, others, strides, place, bias, cut, tail, HEAD_DIM, DIMS, QUERIES, False, HAS_FIRST_KEYS
    )
    return _read_queries(
        gradients, k, v, others, strides, place, bias, tail, stop, HEAD_DIM, DIMS, QUERIES, True, HAS_FIRST_KEYS
    )


@triton.jit
def key_gradients_kernel(
    states, strides, slopes, first_keys, saved, results, sizes, scaling,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HAS_FIRST_KEYS: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values, summed over the query heads that read it.

    Args:
        states: Queries, keys, values and directions.
        strides: Strides of these four and of the gradients of keys and values.
        slopes: See the forward kernel.
        first_keys: See the forward kernel.
        saved: Logs of the softmax denominators, first keys of the tiles, and sums of output times direction.
        results: Where to write the gradients of keys and values.
        sizes: See the forward kernel.
        scaling: Factor of ``q . k``.
    """
    num_kv_heads, num_key_tiles = sizes[0] // sizes[1], tl.cdiv(sizes[3], KEYS)
    tile, kv_index = tl.program_id(0) % num_key_tiles, tl.program_id(0) // num_key_tiles
    row, kv_head = kv_index // num_kv_heads, kv_index % num_kv_heads
    at, offset, num_tiles = tile * KEYS, sizes[3] - sizes[2], tl.cdiv(sizes[2], QUERY_TOKENS)
    keys = at + tl.arange(0, KEYS)
    key, value = head_of(states[1], strides[1], row, kv_head), head_of(states[2], strides[2], row, kv_head)
    k = load_tile(key, at, strides[1][2], sizes[3], HEAD_DIM, KEYS, DIMS, True)
    v = load_tile(value, at, strides[2][2], sizes[3], HEAD_DIM, KEYS, DIMS, True)
    place, token_strides = (keys, row, first_keys, sizes[2], offset), (strides[0][2], strides[3][2])
    gradients = tl.zeros([KEYS, DIMS], tl.float32), tl.zeros([KEYS, DIMS], tl.float32)
    for head in tl.range(kv_head * sizes[1], (kv_head + 1) * sizes[1]):
        index = row * sizes[0] + head
        bias = scaling * LOG2_E, tl.load(slopes[0] + row * slopes[1] + head) * LOG2_E
        query, direction = head_of(states[0], strides[0], row, head), head_of(states[3], strides[3], row, head)
        others = query, direction, saved[0] + index * sizes[2], saved[2] + index * sizes[2]
        gradients = _read_head(
            gradients, k, v, others, token_strides, place, bias, saved[1] + index * num_tiles, at, sizes,
            HEAD_DIM, DIMS, QUERIES, KEYS, HAS_FIRST_KEYS,
        )  # fmt: skip
    key, value = head_of(results[0], strides[4], row, kv_head), head_of(results[1], strides[5], row, kv_head)
    store_tile(key, at, strides[4][2], sizes[3], gradients[0] * scaling, HEAD_DIM, KEYS, DIMS)
    store_tile(value, at, strides[5][2], sizes[3], gradients[1], HEAD_DIM, KEYS, DIMS)
