"""Float64 reference of the whole model in plain loops, derived from the mathematics; shares no code with the package.

A token sees the visible tokens of its own document up to itself, and its position counts them. Padding and packing are
therefore not modeled: each document of each row is cut out and computed as a separate sequence that starts at 0.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from tests.support.position_reference import pair_bias, rope_angle, rope_gain


Array = NDArray[np.float64]
Weights = Mapping[str, Array]


def reference_logits(
    state_dict: Mapping[str, ArrayLike],
    config: Any,
    token_ids: ArrayLike,
    *,
    document_ids: ArrayLike | None = None,
    visible: ArrayLike | None = None,
    slope_dtype: DTypeLike = np.float64,
) -> Array:
    """Logits of ``AlibiGPTForCausalLM`` for a batch that may be padded and packed.

    Args:
        state_dict: Weights of the model, by its own names.
        config: Any object with the fields of ``AlibiGPTConfig``.
        token_ids: ``(B, T)``.
        document_ids: ``(B, T)``, equal for the tokens of one document in a row; by default a row is one document.
        visible: ``(B, T)``, true for tokens and false for padding; by default all tokens are visible.
        slope_dtype: Precision in which fixed slopes are stored; the arithmetic is always float64.

    Returns:
        ``(B, T, V)`` float64; NaN at padding, where logits are undefined.
    """
    weights = {name: np.asarray(value, dtype=np.float64) for name, value in state_dict.items()}
    token_ids = np.asarray(token_ids)
    document_ids = np.zeros_like(token_ids) if document_ids is None else np.asarray(document_ids)
    visible = np.ones(token_ids.shape, dtype=bool) if visible is None else np.asarray(visible, dtype=bool)
    slopes = layer_slopes(weights, config, slope_dtype)
    logits = np.full((*token_ids.shape, config.vocab_size), np.nan)
    for row in range(token_ids.shape[0]):
        for document in np.unique(document_ids[row, visible[row]]):
            slots = np.flatnonzero(visible[row] & (document_ids[row] == document))
            logits[row, slots] = sequence_logits(weights, config, slopes, token_ids[row, slots])
    return logits


def reference_slopes(config: Any) -> Array:
    """``(H,)`` slopes ``beta * m_h``, before any training and any ``alibi_scaling``."""
    return config.alibi_beta * head_ratios(config)


def head_ratios(config: Any) -> Array:
    """``(H,)`` slopes ``m_h`` of the heads at ``beta = 1``."""
    if config.alibi_slope_kind == "uniform":
        return np.ones(config.num_attention_heads)
    if config.alibi_slope_kind == "custom":
        return np.array(config.alibi_slopes, dtype=np.float64)
    return np.array(paper_ratios(config.num_attention_heads, config.alibi_bias_max))


def paper_ratios(num_heads: int, bias_max: float) -> list[float]:
    """A geometric sequence that starts at its own ratio.

    If ``num_heads`` is not a power of two, this is the sequence of the largest power of two below, extended by every
    other element of the sequence for twice that power.

    Source: Press et al. 2022, section 3 and the authors' code.
    """
    power_of_two = 2 ** int(math.floor(math.log2(num_heads)))
    ratio = 2.0 ** (-bias_max / power_of_two)
    ratios = [ratio**head for head in range(1, power_of_two + 1)]
    if power_of_two < num_heads:
        ratios += paper_ratios(2 * power_of_two, bias_max)[0::2][: num_heads - power_of_two]
    return ratios


def layer_slopes(weights: Weights, config: Any, slope_dtype: DTypeLike) -> Array:
    """``(L, H)`` slopes of every layer before ``alibi_scaling``: fixed, or from trained logarithms."""
    if config.alibi_trainable == "slopes":
        return np.exp(weights["model.position_method.bias_log_slopes"])
    if config.alibi_trainable == "beta":
        betas = np.exp(weights["model.position_method.bias_log_beta"])
        return np.outer(betas, head_ratios(config).astype(slope_dtype))
    fixed = reference_slopes(config).astype(slope_dtype).astype(np.float64)
    return np.tile(fixed, (config.num_hidden_layers, 1))


def slopes_of_query(config: Any, slopes: Array, position: int) -> Array:
    """``(H,)`` slopes that the query at ``position`` (tokens from 0) uses, after ``alibi_scaling``."""
    if config.alibi_scaling is None:
        return slopes
    kind = config.alibi_scaling["type"]
    if kind.startswith("dynamic_"):
        factor = max(1.0, (position + 1) / config.train_context_length)
    else:
        factor = config.alibi_scaling["factor"]
    if kind.endswith("linear"):
        return slopes / factor
    steepest, flattest = max(slopes), min(slopes)
    exponents = [math.log(steepest / slope) / math.log(steepest / flattest) for slope in slopes]
    return np.array([slope / factor**exponent for slope, exponent in zip(slopes, exponents, strict=True)])


def sequence_logits(weights: Weights, config: Any, slopes: Array, tokens: Sequence[int]) -> Array:
    """``(N, V)`` logits of ``N`` visible tokens of one document, at positions 0 to ``N - 1``."""
    hidden = weights["model.embed_tokens.weight"][tokens]
    hidden = hidden + position_embeddings(weights, config, len(tokens))
    if config.embedding_layer_norm:
        hidden = layer_norm(weights, config, "model.embedding_norm", hidden)
    for index in range(config.num_hidden_layers):
        name = f"model.layers.{index}"
        normed = layer_norm(weights, config, f"{name}.input_layernorm", hidden)
        hidden = hidden + attention(weights, config, index, slopes[index], normed)
        normed = layer_norm(weights, config, f"{name}.post_attention_layernorm", hidden)
        inner = gelu(config.hidden_act, linear(weights, f"{name}.mlp.up_proj", normed))
        hidden = hidden + linear(weights, f"{name}.mlp.down_proj", inner)
    hidden = layer_norm(weights, config, "model.norm", hidden)
    output = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return hidden @ weights[output].T


def position_embeddings(weights: Weights, config: Any, num_tokens: int) -> Array:
    """``(N, D)`` vectors added to the token embeddings; zero for methods without such vectors.

    Source: Vaswani et al. 2017, section 3.5, with the sines in the first half and the cosines in the second. The waves
    are scaled by the standard deviation of initial embeddings, whereas the paper scales up the embeddings.
    """
    added = np.zeros((num_tokens, config.hidden_size))
    half = config.hidden_size // 2
    for position in range(num_tokens):
        if config.position_method == "learned":
            added[position] = weights["model.position_method.embedding.weight"][position]
        elif config.position_method == "sinusoidal":
            amplitude = config.sinusoidal_amplitude or config.initializer_range
            for k in range(half):
                angle = position / 10000.0 ** (2 * k / config.hidden_size)
                added[position, k] = amplitude * math.sin(angle)
                added[position, half + k] = amplitude * math.cos(angle)
    return added


def attention(weights: Weights, config: Any, layer: int, slopes: Array, hidden: Array) -> Array:
    """``(N, D)`` causal self-attention, one query, head and key at a time."""
    name = f"model.layers.{layer}.self_attn"
    num_tokens, num_heads, num_kv_heads = len(hidden), config.num_attention_heads, config.num_key_value_heads
    query = heads(weights, config, f"{name}.q_proj", f"{name}.q_norm", num_heads, hidden)
    key = heads(weights, config, f"{name}.k_proj", f"{name}.k_norm", num_kv_heads, hidden)
    value = heads(weights, config, f"{name}.v_proj", None, num_kv_heads, hidden)
    if config.position_method == "rope":
        query, key = rotated(config, query), rotated(config, key)
    scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
    mixed = np.zeros((num_tokens, num_heads, config.head_dim))
    for i in range(num_tokens):
        query_slopes = slopes_of_query(config, slopes, i) if config.position_method == "alibi" else np.zeros(num_heads)
        biases = np.array([pair_bias(weights, config, layer, i, j) for j in range(i + 1)])
        for head in range(num_heads):
            kv_head = head // (num_heads // num_kv_heads)
            slope = query_slopes[head] * (scale if config.alibi_bias_inside_scaling else 1.0)
            scores = [scale * (query[i, head] @ key[j, kv_head]) - slope * (i - j) for j in range(i + 1)]
            mixed[i, head] = softmax(scores + biases[:, head]) @ value[: i + 1, kv_head]
    return linear(weights, f"{name}.o_proj", mixed.reshape(num_tokens, -1))


def heads(weights: Weights, config: Any, name: str, norm_name: str | None, num_heads: int, hidden: Array) -> Array:
    """``(N, num_heads, head_dim)``: projected, clipped, split, and divided by the RMS if normed."""
    projected = linear(weights, name, hidden)
    if config.clip_qkv is not None:
        projected = np.clip(projected, -config.clip_qkv, config.clip_qkv)
    split = projected.reshape(len(hidden), num_heads, config.head_dim)
    if config.qk_norm and norm_name is not None:
        mean_square = (split**2).mean(-1, keepdims=True)
        split = weights[f"{norm_name}.weight"] * split / np.sqrt(mean_square + config.layer_norm_epsilon)
    return split


def rotated(config: Any, vectors: Array) -> Array:
    """Rotate the pair ``(k, k + head_dim / 2)`` of every token by its angle.

    Source: Su et al. 2021, section 3.2.2, with the pairing of Llama.
    """
    half = config.head_dim // 2
    turned = np.zeros_like(vectors)
    for position in range(len(vectors)):
        for k in range(half):
            angle = rope_angle(config, position, k)
            x, y = vectors[position, :, k], vectors[position, :, half + k]
            turned[position, :, k] = x * math.cos(angle) - y * math.sin(angle)
            turned[position, :, half + k] = x * math.sin(angle) + y * math.cos(angle)
    return turned * rope_gain(config)


def softmax(scores: Array) -> Array:
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()


def linear(weights: Weights, name: str, hidden: Array) -> Array:
    return hidden @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def layer_norm(weights: Weights, config: Any, name: str, hidden: Array) -> Array:
    centred = hidden - hidden.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    normed = centred / np.sqrt(variance + config.layer_norm_epsilon)
    return normed * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)


def gelu(name: str, hidden: Array) -> Array:
    """Exact GELU, or the tanh approximation of GPT-2.   Source: Hendrycks and Gimpel 2016."""
    if name == "gelu":
        return hidden * 0.5 * (1.0 + np.vectorize(math.erf)(hidden / math.sqrt(2.0)))
    assert name in ("gelu_new", "gelu_pytorch_tanh"), name
    return 0.5 * hidden * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (hidden + 0.044715 * hidden**3)))
