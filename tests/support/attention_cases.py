"""Inputs of the attention tests: random and adversarial tensors, segments, and a float64 reference."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_alibi_gpt import attention_strips
from modeling_alibi_gpt.attention_bounds import DistanceBias
from modeling_alibi_gpt.attention_segments import Segment
from modeling_alibi_gpt.attention_strips import banded_tiles
from modeling_alibi_gpt.attention_tiles import Tile, linear_biases


HEAD_DIM = 16
SCALING = HEAD_DIM**-0.5
TOLERANCE = 1e-6

SEGMENTS = {
    "left padding": [Segment(slice(0, 1), slice(37, 150), 37), Segment(slice(1, 2), slice(0, 150), 0)],
    "right padding": [Segment(slice(0, 1), slice(0, 99), 0), Segment(slice(1, 2), slice(0, 1), 0)],
    "documents": [Segment(slice(0, 2), slice(0, 70), 0), Segment(slice(0, 2), slice(70, 71), 70),
                  Segment(slice(0, 2), slice(71, 150), 71)],
}  # fmt: skip


def draw(num_heads: int, q_len: int, kv_len: int, dtype: torch.dtype = torch.float32, rows: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 * num_heads + kv_len)
    shapes = [(rows, num_heads, length, HEAD_DIM) for length in (q_len, kv_len, kv_len)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def whole(rows: int, q_len: int) -> list[Segment]:
    return [Segment(slice(0, rows), slice(0, q_len), 0)]


def reference(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, segments: list[Segment] | None = None
) -> Tensor:
    """Attention in float64, one query at a time, with gradients by autograd. Queries outside all segments give 0."""
    query, key, value, slopes = (tensor.double() for tensor in (query, key, value, slopes))
    q_len, offset = query.shape[2], key.shape[2] - query.shape[2]
    output = torch.zeros_like(query)
    for segment in segments or whole(query.shape[0], q_len):
        for i in range(segment.queries.start, segment.queries.stop):
            keys = slice(segment.first_key, i + offset + 1)
            distance = torch.arange(i + offset - segment.first_key, -1, -1, dtype=torch.float64)
            content = torch.einsum("bhd,bhkd->bhk", query[segment.rows, :, i], key[segment.rows, :, keys])
            weights = torch.softmax(content * SCALING - slopes[:, None] * distance, dim=-1)
            row = torch.einsum("bhk,bhkd->bhd", weights, value[segment.rows, :, keys])
            output = output.index_put((torch.arange(segment.rows.start, segment.rows.stop)[:, None],
                                       torch.arange(row.shape[1])[None], torch.tensor(i)), row)  # fmt: skip
    return output


def dense_reference(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
    """The same for long sequences without segments, in float64 matrices of one head at a time."""
    query, key, value, slopes = (tensor.double() for tensor in (query, key, value, slopes))
    q_len, kv_len = query.shape[2], key.shape[2]
    distance = torch.arange(kv_len - q_len, kv_len)[:, None] - torch.arange(kv_len)
    outputs = []
    for head in range(query.shape[1]):
        scores = torch.matmul(query[:, head], key[:, head].mT) * SCALING - slopes[head] * distance
        outputs.append(scores.masked_fill(distance < 0, -torch.inf).softmax(-1) @ value[:, head])
    return torch.stack(outputs, dim=1)


def adversarial(kind: str, num_heads: int, length: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 1, num_heads, length, HEAD_DIM, generator=generator)
    if kind == "huge":
        query, key = query * 30, key * 30
    elif kind == "sink":
        key[:, :, 0] = 40 * F.normalize(query.mean(2), dim=-1)
    elif kind == "constant keys":
        key = key[:, :, :1].expand_as(key) * 20
    elif kind == "distant lover":
        key[:, :, : length // 4] = 6 * query[:, :, -1:]
    elif kind == "shifted keys":
        key = key + 100
    elif kind == "tiny":
        query, key = query * 1e-4, key * 1e-4
    return [query, key, value]


ADVERSARIES = ("normal", "huge", "sink", "constant keys", "distant lover", "shifted keys", "tiny")


def band_tiles(
    query: Tensor, key: Tensor, slopes: Tensor, segments: list[Segment], tolerance: float, by_block: bool = True
) -> list[Tile]:
    """Tiles from a bound per block of queries, even for a short sequence, or from one bound per head."""
    bias = DistanceBias(linear_biases(slopes.detach(), key.shape[2], query.dtype), tolerance)
    with pytest.MonkeyPatch.context() as patch:
        find_bands_from(patch, 2 if by_block else key.shape[2] + 1)
        return banded_tiles(query, key, bias, segments, SCALING)


def find_bands_from(patch: pytest.MonkeyPatch, num_tokens: int) -> None:
    """Search for bands from this sequence length on."""
    patch.setattr(attention_strips, "MIN_BANDED_TOKENS", num_tokens)
    patch.setattr(attention_strips, "MIN_BANDED_NUMBERS", 0)


def _single_chunks(tile: Tile) -> list[Tile]:
    """The same tile, split into tiles of one chunk."""

    def shifted(tokens: slice, shift: int) -> slice:
        return slice(tokens.start + shift, tokens.stop + shift)

    return [
        tile._replace(queries=shifted(tile.queries, shift), keys=shifted(tile.keys, shift), num_chunks=1)
        for shift in range(0, tile.num_chunks * tile.num_queries, tile.num_queries)
    ]


def pairs_read(tiles: list[Tile], num_heads: int, length: int) -> Tensor:
    """``(H, T, T)``: the unmasked keys that each query reads; no query may be in two tiles of a head."""
    distance = torch.arange(length)[:, None] - torch.arange(length)
    is_read = torch.zeros(num_heads, length, length, dtype=torch.bool)
    for tile in itertools.chain.from_iterable(map(_single_chunks, tiles)):
        assert not is_read[tile.heads, tile.queries].any()
        reaches = torch.tensor(tile.reaches or [length] * num_heads)[:, None, None]
        is_read[tile.heads, tile.queries, tile.keys] = (distance[tile.queries, tile.keys] < reaches) | (
            distance[tile.queries, tile.keys] < 0
        )
    return is_read
