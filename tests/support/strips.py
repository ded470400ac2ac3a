"""ALiBi over the keys that tiles read, by the kernels of the package, from slopes instead of prepared biases."""

from collections.abc import Sequence

from torch import Tensor

from modeling_alibi_gpt.attention_tiles import Tile, ToeplitzBias, attend_tiles, linear_biases


def strip_attention(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, tiles: Sequence[Tile], scaling: float
) -> Tensor:
    """Attention ``(B, H, Q, d)`` as in ``attend_tiles``, for slopes ``(H,)`` in nats per token."""
    toeplitz = ToeplitzBias(linear_biases(slopes, key.shape[2], query.dtype), tiles)
    return attend_tiles(query, key, value, toeplitz, tiles, scaling, dropout=0.0)
