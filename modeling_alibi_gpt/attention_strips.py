# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Attention with a bias of distance on a CPU: planning which tiles read which keys. Exported to the Hub.

Keys that cannot matter are skipped, or masked if the tile reads them for another query. Their exponentials would be
zero or subnormal numbers, which some processors compute a hundred times slower.

Shapes: B batch, H heads, Q queries, K keys, d head size. Queries are the last Q of K tokens.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from .attention_bounds import BLOCK_TOKENS, DistanceBias, keys_that_matter, largest_margins
from .attention_context import AttentionContext
from .attention_segments import Segment
from .attention_tiles import Tile, ToeplitzBias, attend_tiles, attend_to_self, linear_biases


# Below these numbers of keys, or of elements in a head's keys, use one bound for all queries of a head: finer bounds
# cost more than they save. These constants were measured on two cores of an AMD EPYC (Zen 5, AVX-512).
MIN_BANDED_TOKENS = 512
MIN_BANDED_NUMBERS = 768 * 64
# For heads that read every key: (largest number of keys, queries per tile). Larger chunks waste the half of a tile
# that is in the future; smaller ones do not fill the kernel's blocks.
_WHOLE_CHUNKS = ((2048, 256), (math.inf, 768))
# For the other heads: (upper limit of key blocks read, query blocks per chunk).
_BAND_CHUNKS = ((8, 1), (16, 2), (math.inf, 4))
# Chunks share one kernel call if that adds fewer query-key pairs than the call overhead is worth,
_CALL_PAIRS = 2**14
# and if their key gradients, which overlap between neighbours, total no more than this many tokens.
_MAX_TILE_KEYS = 2**15


class StripAttention:
    """Attention with a bias of distance over the keys that can matter, segment by segment.

    Args:
        context: Visibility.
        tolerance: Largest attention weight that may be left out per query; 0 reads every key.
        slopes: ``(H,)``, nats per token; or
        biases: ``(H, K)``, nats, at distances 0 to ``K - 1``.
    """

    def __init__(
        self,
        context: AttentionContext,
        tolerance: float,
        slopes: Tensor | None = None,
        biases: Tensor | None = None,
    ) -> None:
        self.segments, self.fully_masked_queries = context.segments(), context.fully_masked_queries()
        self.offset = context.kv_len - context.q_len
        self.biases = linear_biases(slopes, context.kv_len, context.dtype) if biases is None else biases
        self.bias = DistanceBias(self.biases, tolerance) if tolerance > 0.0 else None
        longest = max((_num_keys(segment, self.offset) for segment in self.segments), default=1)
        if self.bias is None or not any(self.bias.worth_asking(longest)):
            tiles = whole_tiles(self.segments, self.biases.shape[0], self.offset)
            self.whole: tuple[list[Tile], ToeplitzBias] | None = tiles, ToeplitzBias(self.biases, tiles)
        else:
            self.whole = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Return ``(B, H, Q, d)`` for queries ``(B, H, Q, d)`` and for keys and values ``(B, H, K, d)``."""
        if self.whole is not None:
            tiles, toeplitz = self.whole
        else:
            tiles = banded_tiles(query, key, self.bias, self.segments, scaling)
            toeplitz = ToeplitzBias(self.biases, tiles)
        output = attend_tiles(query, key, value, toeplitz, tiles, scaling, dropout)
        return attend_to_self(output, value, self.fully_masked_queries)


def whole_tiles(
    segments: Sequence[Segment], num_heads: int, offset: int, chunk_tokens: int | None = None
) -> list[Tile]:
    """Tiles that read every key that a query sees.

    Args:
        segments: Visibility.
        num_heads: H.
        offset: Number of keys before the first query, K - Q.
        chunk_tokens: Maximum number of queries per tile; None chooses it by the number of keys.
    """
    return [tile for segment in segments for tile in _whole_tiles(segment, slice(0, num_heads), offset, chunk_tokens)]


def banded_tiles(
    query: Tensor, key: Tensor, bias: DistanceBias, segments: Sequence[Segment], scaling: float
) -> list[Tile]:
    """Tiles that read only the keys that can matter, for every head and chunk of queries.

    Args:
        query: ``(B, H, Q, d)``, the last Q of K tokens.
        key: ``(B, H, K, d)``.
        bias: Bias of the heads and the tolerance.
        segments: Visibility.
        scaling: Factor of ``q . k``.
    """
    offset = key.shape[2] - query.shape[2]
    tiles: list[Tile] = []
    reaches = None
    for segment in segments:
        num_keys = _num_keys(segment, offset)
        is_asked = bias.worth_asking(num_keys)
        is_short = num_keys < MIN_BANDED_TOKENS or num_keys * key.shape[3] < MIN_BANDED_NUMBERS
        if is_short and any(is_asked):
            if reaches is None:
                margins = largest_margins(query, key, bias, scaling, is_one_text=False)
                reaches = tuple(bias.reaches(slice(None), margins[:, None])[:, 0].tolist())
            whole = _whole_tiles(segment, slice(0, query.shape[1]), offset)
            tiles += [tile._replace(reaches=reaches) for tile in whole]
            continue
        tiles += _segment_tiles(query, key, bias, segment, is_asked, scaling)
    return tiles


def _num_keys(segment: Segment, offset: int) -> int:
    return segment.queries.stop + offset - segment.first_key


def _whole_tiles(segment: Segment, heads: slice, offset: int, chunk_tokens: int | None = None) -> Iterator[Tile]:
    num_keys = _num_keys(segment, offset)
    chunk_tokens = chunk_tokens or next(chunk for limit, chunk in _WHOLE_CHUNKS if num_keys <= limit)
    for start in range(segment.queries.start, segment.queries.stop, chunk_tokens):
        queries = slice(start, min(start + chunk_tokens, segment.queries.stop))
        yield Tile(segment.rows, heads, queries, slice(segment.first_key, queries.stop + offset))


def _segment_tiles(
    query: Tensor, key: Tensor, bias: DistanceBias, segment: Segment, is_asked: list[bool], scaling: float
) -> list[Tile]:
    """Tiles of one segment: bands for the heads in ``is_asked`` that save work by them, all keys for the others."""
    num_heads, offset = query.shape[1], key.shape[2] - query.shape[2]
    bands: list[Tile] = []
    # Heads that read every key, with the distance from which on they mask keys.
    whole = dict.fromkeys((head for head in range(num_heads) if not is_asked[head]), _num_keys(segment, offset))
    if any(is_asked):
        # One call for all heads from the first to the last that is asked: call overhead dominates for short texts.
        heads = slice(is_asked.index(True), num_heads - is_asked[::-1].index(True))
        keys = slice(segment.first_key, segment.queries.stop + offset)
        needed = keys_that_matter(
            query[segment.rows, heads, segment.queries], key[segment.rows, heads, keys], bias, heads, scaling
        )
        num_whole_pairs = sum(map(_num_pairs, _whole_tiles(segment, slice(0, 1), offset)))
        by_head = zip(needed.first_blocks.tolist(), needed.reaches.tolist(), strict=True)
        for head, (first_blocks, reaches) in enumerate(by_head, heads.start):
            if not is_asked[head]:
                continue
            tiles = list(_tiles_of_head(segment, head, first_blocks, reaches, offset))
            if sum(map(_num_pairs, tiles)) + _CALL_PAIRS * len(tiles) < num_whole_pairs:
                bands += tiles
            else:
                whole[head] = max(reaches)
    for run in _runs(sorted(whole)):
        reaches = tuple(whole[head] for head in range(run.start, run.stop))
        bands += [tile._replace(reaches=reaches) for tile in _whole_tiles(segment, run, offset)]
    return list(_join_heads(bands))


def _num_pairs(tile: Tile) -> int:
    """Query-key pairs per head, including future keys, which the kernel computes too."""
    return tile.num_chunks * tile.num_queries * tile.num_keys


def _runs(heads: Sequence[int]) -> Iterator[slice]:
    """Runs of adjacent heads."""
    for _, group in itertools.groupby(enumerate(heads), lambda pair: pair[1] - pair[0]):
        numbers = [head for _, head in group]
        yield slice(numbers[0], numbers[-1] + 1)


def _tiles_of_head(
    segment: Segment, head: int, first_blocks: list[int], reaches: list[int], offset: int
) -> Iterator[Tile]:
    """Chunks of queries with the keys they must read. Adjacent chunks with similar key counts share a tile."""
    num_before = segment.queries.start + offset - segment.first_key
    # The first block of keys may be shorter, so that a block ends where the queries begin.
    block_start = segment.first_key - (-num_before % BLOCK_TOKENS)
    own_block = -(-num_before // BLOCK_TOKENS)
    widths = sorted(own_block + block + 1 - first for block, first in enumerate(first_blocks))
    num_blocks = next(blocks for limit, blocks in _BAND_CHUNKS if widths[len(widths) // 2] < limit)
    chunk = BLOCK_TOKENS * num_blocks
    first, num_chunks, num_keys, reach = segment.queries.start, 0, 0, 0  # of the current tile
    for block in range(0, len(first_blocks), num_blocks):
        start = segment.queries.start + BLOCK_TOKENS * block
        stop = min(start + chunk, segment.queries.stop)
        first_key = block_start + BLOCK_TOKENS * min(first_blocks[block : block + num_blocks])
        more_keys = stop + offset - max(segment.first_key, first_key)
        more_reach = max(reaches[block : block + num_blocks])
        joined = -(-max(num_keys, more_keys) // chunk) * chunk
        more_pairs = chunk * (joined * (num_chunks + 1) - num_keys * num_chunks - more_keys)
        fits = stop - start == chunk and first + chunk + offset - joined >= segment.first_key
        if num_chunks and fits and more_pairs <= _CALL_PAIRS and joined * (num_chunks + 1) <= _MAX_TILE_KEYS:
            num_chunks, num_keys, reach = num_chunks + 1, joined, max(reach, more_reach)
            continue
        if num_chunks:
            yield _tile(segment, head, slice(first, min(first + chunk, start)), num_keys, num_chunks, reach, offset)
        first, num_chunks, num_keys, reach = start, 1, more_keys, more_reach
    yield _tile(
        segment, head, slice(first, min(first + chunk, segment.queries.stop)), num_keys, num_chunks, reach, offset
    )


def _tile(
    segment: Segment, head: int, queries: slice, num_keys: int, num_chunks: int, reach: int, offset: int
) -> Tile:
    keys = slice(queries.stop + offset - num_keys, queries.stop + offset)
    return Tile(segment.rows, slice(head, head + 1), queries, keys, num_chunks, (reach,))


def _join_heads(tiles: Sequence[Tile]) -> Iterator[Tile]:
    """Merge tiles of adjacent heads that cover the same queries and keys."""
    alone: dict[tuple[int, int, int], Tile] = {}
    for tile in tiles:
        if tile.num_chunks > 1:
            yield tile
            continue
        place = tile.queries.start, tile.queries.stop, tile.keys.start
        before = alone.get(place)
        if before is not None and before.heads.stop == tile.heads.start:
            heads = slice(before.heads.start, tile.heads.stop)
            alone[place] = before._replace(heads=heads, reaches=before.reaches + tile.reaches)
            continue
        if before is not None:
            yield before
        alone[place] = tile
    yield from alone.values()
