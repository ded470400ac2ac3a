"""FlashAttention 2 on a CPU: the calls we make, against a stand-in that computes what its functions document.

The kernels themselves are compared in tests/gpu.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from modeling_alibi_gpt import attention_flash
from modeling_alibi_gpt.attention_context import AttentionContext
from modeling_alibi_gpt.attention_flash import FlashAttention
from tests.support.exact_cases import BATCHES, CASES, make_model
from tests.test_modeling_exact import FEEDS, HAVE_HOLES, INPUTS, TOLERANCE, expected_logits, feed_at_once, max_error


FLASH_CASES = [
    *("alibi", "alibi_beta", "alibi_custom", "alibi_inside", "alibi_ntk", "alibi_trained_slopes"),
    *("rope", "learned", "sinusoidal", "none", "heads_1", "heads_3", "heads_8", "heads_12"),
]


def one_sequence(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """``(Q, H, d)`` of ``(Q, H, d)`` and ``(K, H_kv, d)`` in float64: scaled scores, bias, causal mask."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.double().repeat_interleave(groups, dim=1) for states in (key, value))
    distance = torch.arange(query.shape[0])[:, None] + key.shape[0] - query.shape[0] - torch.arange(key.shape[0])
    scores = scale * torch.einsum("qhd,khd->hqk", query.double(), key)
    if slopes is not None:
        assert slopes.dtype == torch.float32 and slopes.shape == query.shape[1:2]
        scores = scores - slopes.double()[:, None, None] * distance.abs()
    if causal:
        scores = scores.masked_fill(distance < 0, -torch.inf)
    # A query that sees no key gets zeros.
    weights = scores.softmax(-1).nan_to_num(0.0)
    return torch.einsum("hqk,khd->qhd", weights, value).to(query.dtype)


def of_row(slopes: Tensor | None, row: int) -> Tensor | None:
    return slopes if slopes is None or slopes.ndim == 1 else slopes[row]


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, alibi_slopes=None, deterministic=False):
    assert dropout_p == 0.0
    rows = [
        one_sequence(*states, of_row(alibi_slopes, row), softmax_scale, causal)
        for row, states in enumerate(zip(q, k, v, strict=True))
    ]
    return torch.stack(rows)


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    alibi_slopes=None,
    deterministic=False,
):
    assert dropout_p == 0.0 and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    lengths_q, lengths_k = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    assert (max_seqlen_q, max_seqlen_k) == (max(lengths_q), max(lengths_k))
    assert (sum(lengths_q), sum(lengths_k)) == (q.shape[0], k.shape[0])
    parts = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)
    outputs = [
        one_sequence(*states, of_row(alibi_slopes, index), softmax_scale, causal) for index, states in enumerate(parts)
    ]
    return torch.cat(outputs)


def flash_attn_with_kvcache(
    q, k_cache, v_cache, cache_seqlens=None, softmax_scale=None, causal=False, alibi_slopes=None
):
    assert cache_seqlens.dtype == torch.int32 and cache_seqlens.shape == q.shape[:1]
    lengths = cache_seqlens.tolist()
    rows = [
        one_sequence(query, key[:length], value[:length], of_row(alibi_slopes, row), softmax_scale, causal)
        for row, (query, key, value, length) in enumerate(zip(q, k_cache, v_cache, lengths, strict=True))
    ]
    return torch.stack(rows)


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The stand-in, in float32 too, so that logits can be held to the reference."""
    functions = SimpleNamespace(
        flash_attn_func=flash_attn_func,
        flash_attn_varlen_func=flash_attn_varlen_func,
        flash_attn_with_kvcache=flash_attn_with_kvcache,
    )
    monkeypatch.setitem(sys.modules, "flash_attn", functions)
    monkeypatch.setattr(attention_flash, "DTYPES", (*attention_flash.DTYPES, torch.float32))
    return functions


def flash_model(case: str, dtype: torch.dtype = torch.float32, **overrides: object):
    model = make_model(case, "eager", dtype, **overrides)
    # Transformers lets nobody choose it without a GPU.
    model.config._attn_implementation_internal = "flash_attention_2"
    return model


def can_be_read(layout: str, feed: str) -> bool:
    return layout not in HAVE_HOLES and not (feed == "static" and BATCHES[layout].visible is not None)


@pytest.mark.parametrize(("layout", "feed"), [inputs for inputs in INPUTS if can_be_read(*inputs)])
@pytest.mark.parametrize("case", [case for case in FLASH_CASES if case in CASES])
@torch.no_grad()
def test_logits_equal_the_reference(case: str, layout: str, feed: str, flash_attn: SimpleNamespace) -> None:
    logits = FEEDS[feed](flash_model(case), BATCHES[layout])
    assert max_error(logits, expected_logits(case, layout), BATCHES[layout].visible) <= TOLERANCE


@pytest.mark.parametrize(
    ("layout", "options"), [("left", {"num_beams": 2}), ("whole", {"cache_implementation": "static"})]
)
def test_generated_tokens_are_those_of_eager(
    layout: str, options: dict[str, object], flash_attn: SimpleNamespace
) -> None:
    batch = BATCHES[layout].first(9)
    visible = torch.ones_like(batch.token_ids) if batch.visible is None else batch.visible
    options = {"attention_mask": visible, "max_new_tokens": 8, "do_sample": False} | options
    expected = make_model("alibi", "eager").generate(batch.token_ids, **options)
    assert torch.equal(flash_model("alibi").generate(batch.token_ids, **options), expected)


def test_every_case_named_here_exists() -> None:
    assert set(FLASH_CASES) <= set(CASES)


@pytest.mark.parametrize(("layout", "feed"), [inputs for inputs in INPUTS if not can_be_read(*inputs)])
@torch.no_grad()
def test_what_is_no_run_of_tokens_is_refused(layout: str, feed: str, flash_attn: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="'flash_attention_2' needs contiguous tokens"):
        FEEDS[feed](flash_model("alibi"), BATCHES[layout])


@pytest.mark.parametrize(
    ("case", "complaint"),
    [
        ("t5", "supports no position bias but ALiBi"),
        ("kerple", "supports no position bias but ALiBi"),
        ("alibi_dynamic_ntk", "varies slopes by query"),
    ],
)
@torch.no_grad()
def test_other_biases_are_refused(case: str, complaint: str, flash_attn: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=complaint):
        feed_at_once(flash_model(case), BATCHES["whole"])


def test_slopes_that_learn_are_refused_in_training_and_read_without_gradients(flash_attn: SimpleNamespace) -> None:
    model = flash_model("alibi_trained_slopes")
    with pytest.raises(ValueError, match="no gradient of the slopes.*train with flex_attention or sdpa"):
        feed_at_once(model, BATCHES["whole"])
    with torch.no_grad():
        assert np.isfinite(feed_at_once(model, BATCHES["whole"]).numpy()).all()


@pytest.mark.parametrize("layout", ["whole", "left", "packed"])
def test_gradients_are_those_of_eager(layout: str, flash_attn: SimpleNamespace) -> None:
    gradients = []
    for model in (make_model("alibi", "eager"), flash_model("alibi")):
        logits = feed_at_once(model, BATCHES[layout])
        visible = BATCHES[layout].visible
        (logits if visible is None else logits[visible.bool()]).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    # Biases of keys have gradients of nothing but rounding, so that the scale is that of all.
    scale = max(expected.abs().max() for expected in gradients[0])
    for expected, actual in zip(*gradients, strict=True):
        assert (actual - expected).abs().max() <= TOLERANCE * scale


@pytest.mark.parametrize("asks", ["nobody", "torch", "environment"])
@pytest.mark.parametrize("layout", ["whole", "left", "packed"])
def test_gradients_are_deterministic_where_asked_for(
    layout: str, asks: str, flash_attn: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch, or by ``TrainingArguments(full_determinism=True)``, which sets the variable."""
    found = []
    for name in ("flash_attn_func", "flash_attn_varlen_func"):
        function = getattr(flash_attn, name)

        def record(*args, function=function, deterministic=False, **kwargs):
            found.append(deterministic)
            return function(*args, **kwargs)

        setattr(flash_attn, name, record)
    monkeypatch.delenv("FLASH_ATTENTION_DETERMINISTIC", raising=False)
    if asks == "environment":
        monkeypatch.setenv("FLASH_ATTENTION_DETERMINISTIC", "1")
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(asks == "torch")
    try:
        feed_at_once(flash_model("alibi"), BATCHES[layout])
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
    assert found == [asks != "nobody"] * 2  # layers


def test_compiled_models_ask_for_deterministic_gradients(
    flash_attn: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one graph, which is traced anew after torch's switch."""
    found = []

    def record(q, *args, deterministic=False, **kwargs):
        found.append(deterministic)
        return q + 1

    flash_attn.flash_attn_func = record
    monkeypatch.delenv("FLASH_ATTENTION_DETERMINISTIC", raising=False)
    states = torch.zeros(1, 2, 5, 8)
    attention = FlashAttention(AttentionContext.from_lengths(5, 5, torch.float32))
    attend = torch.compile(attention.attend, backend="eager", fullgraph=True)
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        for wanted in (False, True):
            torch.use_deterministic_algorithms(wanted)
            attend(states, states, states, 1.0, 0.0)
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
    assert found == [False, True]


@pytest.mark.parametrize(("dropout", "has_gradients"), [(0.0, True), (0.1, False)])
def test_static_caches_are_refused_in_training(
    dropout: float, has_gradients: bool, flash_attn: SimpleNamespace
) -> None:
    """Without it, training would go on with a gradient through the residual stream alone."""
    model, batch = flash_model("alibi", attention_dropout=dropout).train(), BATCHES["whole"]
    with (
        torch.set_grad_enabled(has_gradients),
        pytest.raises(ValueError, match="no gradients and no dropout with a static cache, got atten"),
    ):
        FEEDS["static"](model, batch)


@torch.no_grad()
def test_float32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace())
    with pytest.raises(ValueError, match=r"float16 and bfloat16, got torch.float32"):
        feed_at_once(flash_model("alibi"), BATCHES["whole"])


@torch.no_grad()
def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ValueError, match="needs the package flash-attn"):
        feed_at_once(flash_model("alibi", torch.bfloat16), BATCHES["whole"])


@pytest.mark.parametrize("name", ["flash_attention_3", "flash_attention_4", "kernels-community/flash-attn2"])
@torch.no_grad()
def test_other_flash_attentions_are_refused_with_the_reason(name: str) -> None:
    model = make_model("alibi", "eager")
    model.config._attn_implementation_internal = name
    with pytest.raises(ValueError, match="only FlashAttention 2, from the package flash-attn, accepts ALiBi slopes"):
        feed_at_once(model, BATCHES["whole"])
