# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Triton kernels of fused ALiBi attention: the forward pass and which keys it reads. Exported to the Hub.

A kernel keeps a tile of queries on chip and reads keys tile by tile, as FlashAttention does (Dao 2023,
arXiv:2307.08691). Two things are ALiBi's own:

* Softmax ignores what all keys of a query share, so ``-s * (i - j)`` becomes ``s * (j - c)``, where c is the last
  query's own key: one number per key, added to a column of scores.
* The nearest keys are read first. Their softmax denominator and the norms of the other keys bound the weight of every
  block of keys further away. Leading blocks are skipped while their total stays within the tolerance. The bound is
  that of :mod:`~modeling_alibi_gpt.attention_bounds`, with a denominator that is known instead of bounded.
* The same norms bound how far a score can exceed the largest near one. Mostly that is little, and then the far keys
  need no running maximum.

Scores are in units of log 2, because hardware computes ``exp2``.

Shapes: B batch, H heads, Q queries, K keys, d head size, D the next power of two, M tiles of queries, N blocks of
keys. Queries are the last Q of K tokens. Strides are those of ``(B, H, T, d)`` without the last, which is 1.
"""

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(f"fused attention needs the package triton: {error}") from error


QUERY_TOKENS = tl.constexpr(128)
# Keys per block; the longest key bounds the weight of the whole block. Tiles of keys consist of whole blocks.
BLOCK_TOKENS = tl.constexpr(64)
# Keys before a tile's own that are read before the bounds are computed, and a power of two that covers their blocks
# and the tile's own.
_NEAR_TOKENS = tl.constexpr(128)
_NUM_NEAR_BLOCKS = tl.constexpr(8)
# Blocks whose weights are bounded at once.
_NUM_BOUNDS = tl.constexpr(128)
# How far scores may exceed the maximum that is subtracted: 2 to this power has to be a weight.
_MAX_EXCESS_FLOAT16 = tl.constexpr(14.0)
_MAX_EXCESS = tl.constexpr(60.0)
# Error bound of a float32 sum of a few hundred products, relative to its largest possible value.
_ROUNDING = tl.constexpr(2**-14)
LOG2_E = tl.constexpr(1.4426950408889634)
# Below any score, but finite, so that its difference from itself is 0.
_LOWEST = tl.constexpr(-3e38)


@triton.jit
def head_of(states, strides, row, head):
    """Pointer to one head of one row."""
    return states + tl.cast(row, tl.int64) * strides[0] + tl.cast(head, tl.int64) * strides[1]


@triton.jit
def load_tile(
    states, start, stride, stop, HEAD_DIM: tl.constexpr, TOKENS: tl.constexpr, DIMS: tl.constexpr, IS_CUT: tl.constexpr
):
    """``(TOKENS, D)`` from token ``start`` on, with zeros beyond d and, if ``IS_CUT``, from token ``stop`` on."""
    tokens, dims = tl.arange(0, TOKENS)[:, None], tl.arange(0, DIMS)[None, :]
    pointers = states + tl.cast(start, tl.int64) * stride + tokens * stride + dims
    if IS_CUT:
        return tl.load(pointers, mask=(start + tokens < stop) & (dims < HEAD_DIM), other=0.0)
    if HEAD_DIM < DIMS:
        return tl.load(pointers, mask=dims < HEAD_DIM, other=0.0)
    return tl.load(pointers)


@triton.jit
def store_tile(states, start, stride, stop, tile, HEAD_DIM: tl.constexpr, TOKENS: tl.constexpr, DIMS: tl.constexpr):
    """Store the tokens before ``stop`` of a ``(TOKENS, D)`` tile."""
    tokens, dims = tl.arange(0, TOKENS)[:, None], tl.arange(0, DIMS)[None, :]
    pointers = states + tl.cast(start, tl.int64) * stride + tokens * stride + dims
    tl.store(pointers, tile.to(states.dtype.element_ty), mask=(start + tokens < stop) & (dims < HEAD_DIM))


@triton.jit
def load_first_keys(first_keys, row, queries, own_keys, q_len, HAS_FIRST_KEYS: tl.constexpr):
    """First key that each query sees. ``first_keys`` holds a pointer to ``(B, Q)`` and the stride of a row."""
    if HAS_FIRST_KEYS:
        return tl.load(first_keys[0] + row * first_keys[1] + tl.minimum(queries, q_len - 1))
    return own_keys * 0


@triton.jit
def sees(own_keys, first_seen, keys, HAS_FIRST_KEYS: tl.constexpr):
    """Whether queries see keys; the shapes broadcast."""
    is_seen = keys <= own_keys
    if HAS_FIRST_KEYS:
        is_seen = is_seen & (keys >= first_seen)
    return is_seen


@triton.jit
def key_norms_kernel(key, strides, norms, centres, num_heads, kv_len, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr):
    """Write the centre c ``(B, H, d)``, the mean of a sample of keys, and the largest ``|k - c|`` of every block of
    keys, ``(B, H, N)``, all float32."""
    num_blocks = tl.cdiv(kv_len, BLOCK_TOKENS)
    block, index = tl.program_id(0) % num_blocks, tl.program_id(0) // num_blocks
    keys, dims = tl.arange(0, BLOCK_TOKENS), tl.arange(0, DIMS)
    states = head_of(key, strides, index // num_heads, index % num_heads)
    # Every program computes the centre again, from keys spread over the text.
    step = tl.cast(num_blocks, tl.int64)
    sample = load_tile(states, 0, step * strides[2], tl.cdiv(kv_len, step), HEAD_DIM, BLOCK_TOKENS, DIMS, True)
    centre = tl.sum(sample.to(tl.float32), 0) / tl.cdiv(kv_len, step)
    if block == 0:
        tl.store(centres + index * HEAD_DIM + dims, centre, mask=dims < HEAD_DIM)
    tile = load_tile(states, block * BLOCK_TOKENS, strides[2], kv_len, HEAD_DIM, BLOCK_TOKENS, DIMS, True)
    shifted = tile.to(tl.float32) - centre[None, :]
    squares = tl.where(block * BLOCK_TOKENS + keys < kv_len, tl.sum(shifted * shifted, 1), 0.0)
    tl.store(norms + index * num_blocks + block, tl.sqrt(tl.max(squares, 0)))


@triton.jit
def _attend(
    state, q, states, strides, place, bias, start, stop,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, KEYS: tl.constexpr,
    IS_CUT: tl.constexpr, HAS_FIRST_KEYS: tl.constexpr, KEEPS_MAXIMA: tl.constexpr,
):  # fmt: skip
    """Continue the online softmax of a tile of queries over the keys from ``start`` up to ``stop``.

    Args:
        state: Weighted sum of values, sum of weights, and largest score, unless ``KEEPS_MAXIMA``.
        q: The queries.
        states: Pointers to the keys and values of the head.
        strides: Their strides per token.
        place: Own key and first visible key of every query, and K.
        bias: Factor of ``q . k``, slope, and the key without bias.
        start: First key.
        stop: End of the keys. Unless ``IS_CUT``, these are whole tiles that every query sees, apart from first keys.
    """
    accumulator, sums, maxima = state
    within_tile = bias[1] * tl.arange(0, KEYS)
    for at in tl.range(start, stop, KEYS):
        k = load_tile(states[0], at, strides[0], place[2], HEAD_DIM, KEYS, DIMS, IS_CUT)
        scores = tl.dot(q, tl.trans(k)) * bias[0] + (within_tile + bias[1] * (at - bias[2]))[None, :]
        if IS_CUT or HAS_FIRST_KEYS:
            keys = at + tl.arange(0, KEYS)
            is_seen = sees(place[0][:, None], place[1][:, None], keys[None, :], HAS_FIRST_KEYS)
            scores = tl.where(is_seen, scores, float("-inf"))
        if not KEEPS_MAXIMA:
            highest = tl.maximum(maxima, tl.max(scores, 1))
            shrink = tl.exp2(maxima - highest)
            accumulator, sums, maxima = accumulator * shrink[:, None], sums * shrink, highest
        weights = tl.exp2(scores - maxima[:, None])
        sums += tl.sum(weights, 1)
        v = load_tile(states[1], at, strides[1], place[2], HEAD_DIM, KEYS, DIMS, IS_CUT)
        accumulator = tl.dot(weights.to(v.dtype), v, accumulator)
    return accumulator, sums, maxima


@triton.jit
def _num_negligible(longest_query, least_known, centre_norm, norms, slope, origin, num_blocks, tolerance):
    """Number of leading blocks of keys whose total weight is within the tolerance for every query of a tile.

    Args:
        longest_query: Largest scaled ``|q|``.
        least_known: Smallest log of a softmax denominator, of centred keys with the bias ``slope * (j - origin)``.
        centre_norm: ``|c|``.
        norms: Pointer to the largest ``|k - c|`` of every block.
        slope: Slope, in log 2 per token, above 0.
        origin: The last query's own key.
        num_blocks: Number of blocks that may be skipped.
        tolerance: Largest weight that may be left out.
    """
    # The exponentials of a block's biases are a geometric series.
    num_keys = tl.minimum(64.0, 1.0 / (1.0 - tl.exp2(-slope)))
    count, left_out = 0, 0.0
    for start in tl.range(0, num_blocks, _NUM_BOUNDS):
        number = start + tl.arange(0, _NUM_BOUNDS)
        norm = tl.load(norms + number, mask=number < num_blocks, other=0.0)
        norm += (norm + centre_norm) * _ROUNDING
        log_weights = longest_query * norm + slope * ((number + 1) * BLOCK_TOKENS - 1 - origin) - least_known
        weights = num_keys * tl.exp2(tl.minimum(log_weights, 100.0))
        weights = tl.where(number < num_blocks, weights, 1.0)
        count += tl.sum((left_out + tl.cumsum(weights, 0) <= tolerance).to(tl.int32), 0)
        left_out += tl.sum(weights, 0)
    return count


@triton.jit
def _largest_norm(norms, first_block, num_blocks):
    """Largest ``|k - c|`` of the blocks from ``first_block`` up to ``num_blocks``."""
    largest = 0.0
    for start in tl.range(first_block, num_blocks, _NUM_BOUNDS):
        number = start + tl.arange(0, _NUM_BOUNDS)
        largest = tl.maximum(largest, tl.max(tl.load(norms + number, mask=number < num_blocks, other=0.0), 0))
    return largest


@triton.jit
def _far_keys(q, sums, maxima, is_real, near, bounds, bias, tolerance, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr):
    """Bounds on the keys before key ``near``, given the online softmax over the keys from there on.

    ``bounds`` holds pointers to the norms of the head's blocks of keys and to its centre. ``is_real`` says which
    queries exist.

    Returns:
        The first key that matters, and how far a score from there on may exceed the largest so far.
    """
    dims, exact = tl.arange(0, DIMS), q.to(tl.float32)
    centre = tl.load(bounds[1] + dims, mask=dims < HEAD_DIM, other=0.0)
    centre_norm = tl.sqrt(tl.sum(centre * centre, 0))
    query_norms = tl.sqrt(tl.sum(exact * exact, 1)) * bias[0]
    blocks = near // BLOCK_TOKENS + tl.arange(0, _NUM_NEAR_BLOCKS)
    near_norm = tl.max(tl.load(bounds[0] + blocks, mask=blocks * BLOCK_TOKENS <= bias[2], other=0.0), 0)
    centred = maxima - tl.sum(exact * centre[None, :], 1) * bias[0]
    centred -= query_norms * (near_norm + centre_norm) * _ROUNDING
    least_known = tl.min(tl.where(is_real, centred + tl.log2(sums), float("inf")), 0)
    longest_query, num_blocks = tl.max(query_norms, 0), near // BLOCK_TOKENS
    num_skipped = _num_negligible(
        longest_query, least_known, centre_norm, bounds[0], bias[1], bias[2],
        tl.where(bias[1] > 0.0, num_blocks, 0), tolerance,
    )  # fmt: skip
    norm = _largest_norm(bounds[0], num_skipped, num_blocks)
    norm += (norm + centre_norm) * _ROUNDING
    largest_bias = bias[1] * (tl.where(bias[1] > 0.0, near - 1, 0) - bias[2])
    excess = longest_query * norm + largest_bias - tl.min(tl.where(is_real, centred, float("inf")), 0)
    return num_skipped * BLOCK_TOKENS, excess


@triton.jit
def _store_results(
    results, state, strides, index, at, bias, own_keys, sizes, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr
):
    """Store the output and the logs of the softmax denominators with biases relative to the own key."""
    output = head_of(results[0], strides, index // sizes[0], index % sizes[0])
    store_tile(output, at, strides[2], sizes[2], state[0] / state[1][:, None], HEAD_DIM, QUERY_TOKENS, DIMS)
    log_sums = state[2] + tl.log2(state[1]) + bias[1] * (bias[2] - own_keys)
    queries = at + tl.arange(0, QUERY_TOKENS)
    tl.store(results[1] + index * sizes[2] + queries, log_sums, mask=queries < sizes[2])


@triton.jit
def forward_kernel(
    states, strides, slopes, first_keys, bounds, results, sizes, scaling, tolerance,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, KEYS: tl.constexpr,
    HAS_FIRST_KEYS: tl.constexpr, SKIPS_KEYS: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of queries.

    Args:
        states: Queries, keys and values.
        strides: Strides of these three and of the output.
        slopes: Pointer to slopes ``(B, H)``, nats per token, and the stride of a row.
        first_keys: Pointer to the first key that each query sees, ``(B, Q)``, and the stride of a row.
        bounds: Norms and centres, as ``key_norms_kernel`` writes them.
        results: Where to write the output ``(B, H, Q, d)``, the log of the softmax denominator ``(B, H, Q)``, and the
            first key that each tile reads, ``(B, H, M)``.
        sizes: H, query heads per key/value head, Q and K.
        scaling: Factor of ``q . k``.
        tolerance: Largest weight that may be left out per query, if ``SKIPS_KEYS``.
    """
    num_tiles = tl.cdiv(sizes[2], QUERY_TOKENS)
    # Tiles that read the most keys start first: the last of a head, and the last heads, whose slopes are flattest.
    tile, index = num_tiles - 1 - tl.program_id(0) % num_tiles, tl.program_id(0) // num_tiles
    row, head = index // sizes[0], sizes[0] - 1 - index % sizes[0]
    index = row * sizes[0] + head
    at, offset, kv_head = tile * QUERY_TOKENS, sizes[3] - sizes[2], head // sizes[1]
    queries, stop = at + tl.arange(0, QUERY_TOKENS), tl.minimum(at + QUERY_TOKENS + offset, sizes[3])
    bias = scaling * LOG2_E, tl.load(slopes[0] + row * slopes[1] + head) * LOG2_E, stop - 1
    query, token_strides = head_of(states[0], strides[0], row, head), (strides[1][2], strides[2][2])
    q = load_tile(query, at, strides[0][2], sizes[2], HEAD_DIM, QUERY_TOKENS, DIMS, True)
    others = head_of(states[1], strides[1], row, kv_head), head_of(states[2], strides[2], row, kv_head)
    first_seen = load_first_keys(first_keys, row, queries, queries + offset, sizes[2], HAS_FIRST_KEYS)
    place = queries + offset, first_seen, sizes[3]
    sums, maxima = tl.zeros([QUERY_TOKENS], tl.float32), tl.full([QUERY_TOKENS], _LOWEST, tl.float32)
    state = tl.zeros([QUERY_TOKENS, DIMS], tl.float32), sums, maxima
    cut = (at + offset + 1) // KEYS * KEYS  # no query of the tile precedes a key before this one
    start = tl.minimum(tl.min(first_seen, 0) // KEYS * KEYS, cut)
    near = tl.maximum(start, cut - _NEAR_TOKENS) if SKIPS_KEYS else cut
    state = _attend(
        state, q, others, token_strides, place, bias, near, stop, HEAD_DIM, DIMS, KEYS, True, HAS_FIRST_KEYS, False
    )
    excess = float("inf")
    if SKIPS_KEYS:
        kv_index = row * (sizes[0] // sizes[1]) + kv_head
        of_head = bounds[0] + kv_index * tl.cdiv(sizes[3], BLOCK_TOKENS), bounds[1] + kv_index * HEAD_DIM
        is_real = queries < sizes[2]
        first, excess = _far_keys(q, state[1], state[2], is_real, near, of_head, bias, tolerance, HEAD_DIM, DIMS)
        start = tl.maximum(start, first // KEYS * KEYS)
    max_excess: tl.constexpr = _MAX_EXCESS_FLOAT16 if q.dtype == tl.float16 else _MAX_EXCESS
    if excess <= max_excess:
        state = _attend(
            state, q, others, token_strides, place, bias, start, near,
            HEAD_DIM, DIMS, KEYS, False, HAS_FIRST_KEYS, True,
        )  # fmt: skip
    else:
        state = _attend(
            state, q, others, token_strides, place, bias, start, near,
            HEAD_DIM, DIMS, KEYS, False, HAS_FIRST_KEYS, False,
        )  # fmt: skip
    _store_results(results, state, strides[3], index, at, bias, place[0], sizes, HEAD_DIM, DIMS)
    tl.store(results[2] + index * num_tiles + tile, start)
