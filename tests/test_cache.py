"""The cache that keeps a window a head: the tokens and logits of a full cache, in memory that does not grow."""

import itertools
from typing import NamedTuple

import pytest
import torch
from transformers import DynamicCache

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM, AlibiWindowCache, attention_banded
from modeling_alibi_gpt.alibi import alibi_windows
from modeling_alibi_gpt.attention_banded import BandedAttention
from modeling_alibi_gpt.attention_context import AttentionContext, attention_context
from modeling_alibi_gpt.attention_inputs import ForwardInputs
from modeling_alibi_gpt.attention_windows import WindowedStates
from modeling_alibi_gpt.cache_alibi_gpt import measured_margins, slopes_of_layers


VOCAB_SIZE = 61


def make_model(back_end: str = "alibi_banded", **fields) -> AlibiGPTForCausalLM:
    """Flat heads look at some hundred tokens: steep slopes, and queries and keys of a small norm."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "initializer_range": 0.2,
        "qk_norm": True,
        "attention_scale": 0.05,
        "alibi_beta": 32.0,
    }
    return AlibiGPTForCausalLM(AlibiGPTConfig(**settings | fields, attn_implementation=back_end)).eval()


def draw_tokens(batch_size: int, length: int) -> torch.Tensor:
    return torch.randint(0, VOCAB_SIZE, (batch_size, length), generator=torch.Generator().manual_seed(length))


def feed(model: AlibiGPTForCausalLM, tokens: torch.Tensor, chunks: list[int], cache, visible=None) -> torch.Tensor:
    logits = []
    for start, end in itertools.pairwise(itertools.accumulate(chunks, initial=0)):
        mask = None if visible is None else visible[:, :end]
        logits.append(model(tokens[:, start:end], attention_mask=mask, past_key_values=cache).logits)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize(
    "chunks", [[400, *[1] * 40], [1] * 300, [100, 70, 1, 1, 200, 1, 30, 1]], ids=["prompt", "one", "chunks"]
)
@pytest.mark.parametrize("kv_heads", [1, 3, 6])
@torch.no_grad()
def test_logits_are_those_of_the_whole(chunks: list[int], kv_heads: int) -> None:
    model = make_model(num_key_value_heads=kv_heads)
    tokens = draw_tokens(2, sum(chunks))
    cache = AlibiWindowCache.from_qk_norm(model)
    logits = feed(model, tokens, chunks, cache)
    model.set_attn_implementation("sdpa")
    # Weights of 1e-6 left out in two layers, and float32.
    torch.testing.assert_close(logits, model(tokens).logits, atol=1e-4, rtol=0)
    assert any(group.stop < sum(chunks) for layer in cache.layers for group in layer.groups), "nothing was dropped"


@pytest.mark.parametrize("padding", [0, 30])
def test_layers_may_be_on_another_device_than_the_embeddings(padding: int) -> None:
    """As with a ``device_map``; the second device is meta here, which computes shapes and refuses mixed devices."""
    cache = AlibiWindowCache([[20, 20, 20]])
    cache.update(*torch.zeros(2, 1, 3, 97, 8), 0)
    mask = (torch.arange(100) >= padding).long()[None]
    context = attention_context(ForwardInputs(make_model().config, torch.zeros(1, 3, 48), mask, cache=cache), {})
    assert context.is_whole == (padding == 0)
    states = WindowedStates((slice(0, 3),), (torch.zeros(1, 3, 22, 8, device="meta"),))
    query = torch.zeros(1, 6, 3, 8, device="meta")
    output = BandedAttention(context, torch.ones(6), 1e-6).attend(query, states, states, 0.25, 0.0)
    assert (output.device.type, output.shape) == ("meta", query.shape)


def test_strips_are_those_of_the_device_of_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout takes strips on a GPU too, and strips that were built for a CPU would have slopes of a CPU."""
    devices = []

    class Strips(NamedTuple):
        context: AttentionContext
        tolerance: float
        slopes: torch.Tensor

        def attend(self, *args: object) -> None:
            devices.append(self.slopes.device.type)

    monkeypatch.setattr(attention_banded, "StripAttention", Strips)
    attention = BandedAttention(AttentionContext.from_lengths(8, 8, torch.float32), torch.ones(6), 1e-6)
    for device in ("cpu", "meta"):
        attention.attend(*torch.zeros(3, 1, 6, 8, 8, device=device), 0.25, 0.5)
    assert devices == ["cpu", "meta"]


@torch.no_grad()
def test_left_padding() -> None:
    model = make_model()
    tokens = draw_tokens(2, 250)
    visible = torch.ones_like(tokens)
    visible[0, :90] = 0
    chunks = [200, 20, *[1] * 30]
    logits = feed(model, tokens, chunks, AlibiWindowCache.from_qk_norm(model), visible)
    expected = feed(make_model("eager"), tokens, chunks, DynamicCache(), visible)
    torch.testing.assert_close(logits[visible.bool()], expected[visible.bool()], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_cache_that_was_reset_is_as_new() -> None:
    model, tokens = make_model(), draw_tokens(2, 120)
    cache = AlibiWindowCache.from_qk_norm(model)
    first = feed(model, tokens, [100, 20], cache)
    cache.reset()
    assert torch.equal(feed(model, tokens, [100, 20], cache), first)


def test_generate_gives_the_tokens_of_a_full_cache() -> None:
    model = make_model()
    prompt = draw_tokens(2, 200)
    options = {"max_new_tokens": 60, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    cache = AlibiWindowCache.from_qk_norm(model)
    tokens = model.generate(prompt, past_key_values=cache, **options)
    model.set_attn_implementation("sdpa")
    assert torch.equal(tokens, model.generate(prompt, **options))


def test_beams_take_their_keys_along() -> None:
    model = make_model()
    prompt = draw_tokens(2, 150)
    options = {"max_new_tokens": 20, "num_beams": 3, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    tokens = model.generate(prompt, past_key_values=AlibiWindowCache.from_qk_norm(model), **options)
    model.set_attn_implementation("sdpa")
    assert torch.equal(tokens, model.generate(prompt, **options))


@torch.no_grad()
def test_rows_may_be_repeated() -> None:
    model, tokens = make_model(), draw_tokens(2, 120)
    repeated = tokens.repeat_interleave(3, dim=0)
    cache = AlibiWindowCache.from_qk_norm(model)
    feed(model, tokens, [100], cache)
    cache.batch_repeat_interleave(3)
    logits = model(repeated[:, 100:], past_key_values=cache).logits
    expected = feed(model, repeated, [100, 20], AlibiWindowCache.from_qk_norm(model))[:, 100:]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_memory_does_not_grow() -> None:
    model = make_model()
    cache = AlibiWindowCache.from_qk_norm(model)
    sizes = []
    for token in draw_tokens(1, 1500).split(1, dim=1):
        model(token, past_key_values=cache)
        sizes.append(cache.num_bytes)
    assert max(sizes[700:]) <= max(sizes[:700])
    full = 2 * 2 * 48 // 2 * 1500 * 4  # layers, keys and values, width of three of six heads, tokens, float32
    assert sizes[-1] < full / 2


def test_windows_are_those_of_the_bound() -> None:
    model = make_model(num_key_value_heads=6)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_norm.weight[3] = -100.0
    cache = AlibiWindowCache.from_qk_norm(model)
    slopes = model.config.base_alibi_slopes()
    for layer, largest in zip(cache.layers, (1.0, 100.0), strict=True):
        margin = (1 + 2**-7) * 2 * 0.05 * model.config.head_dim * largest
        windows = alibi_windows(slopes, margin, model.config.alibi_tolerance)
        for group in layer.groups:
            assert windows[group.heads].max() <= group.window <= 1.02 * windows[group.heads].max() + 1


@torch.no_grad()
def test_windows_measured_on_a_text() -> None:
    model = make_model(qk_norm=False, attention_scale=None)
    tokens = draw_tokens(2, 500)
    narrow, wide = (AlibiWindowCache.from_text(model, tokens, factor) for factor in (1.0, 1.5))
    for layers in zip(narrow.layers, wide.layers, strict=True):
        assert sum(group.window for group in layers[0].groups) < sum(group.window for group in layers[1].groups)
    measured = list(zip(slopes_of_layers(model), measured_margins(model, tokens), strict=True))
    for factor, cache in ((1.0, narrow), (1.5, wide)):
        for layer, (slopes, margins) in zip(cache.layers, measured, strict=True):
            windows = alibi_windows(slopes, factor * margins.clamp(min=0), model.config.alibi_tolerance)
            of_kv_head = windows.unflatten(0, (3, -1)).amax(-1)
            assert all(group.window == of_kv_head[group.heads].max() for group in layer.groups)
    logits = feed(model, tokens, [300, *[1] * 200], wide)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(logits, model(tokens).logits, atol=1e-4, rtol=0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="from_text"):
        AlibiWindowCache.from_qk_norm(make_model(qk_norm=False))
    with pytest.raises(ValueError, match="safety_factor must be at least 1, got 0.5"):
        AlibiWindowCache.from_text(make_model(), draw_tokens(1, 8), 0.5)
    for fields in ({"position_method": "none", "alibi_beta": 1.0}, {"alibi_scaling": {"type": "dynamic_linear"}}):
        with pytest.raises(ValueError, match="one slope per head"):
            AlibiWindowCache.from_qk_norm(make_model("sdpa", **fields))
    for back_end in ("sdpa", "eager"):
        model = make_model(back_end)
        with pytest.raises(ValueError, match="needs attn_implementation='alibi_banded'"):
            model(draw_tokens(1, 8), past_key_values=AlibiWindowCache.from_qk_norm(model))
    with pytest.raises(ValueError, match="has windows for 3 key/value heads, got keys of 6"), torch.no_grad():
        make_model(num_key_value_heads=6)(draw_tokens(1, 8), past_key_values=AlibiWindowCache([[64] * 3] * 2))
    with pytest.raises(ValueError, match="has windows for 1 layers, got keys of layer 2"):
        make_model().generate(draw_tokens(1, 8), past_key_values=AlibiWindowCache([[64] * 3]), max_new_tokens=2)
    cache = AlibiWindowCache.from_qk_norm(make_model())
    with pytest.raises(ValueError, match="cannot remove tokens"):
        cache.crop(-1)


@pytest.mark.slow
@torch.no_grad()
def test_a_hundred_thousand_tokens_in_constant_memory() -> None:
    """Last run 2026-11-21, in eleven minutes on one core that was shared."""
    model = make_model(num_hidden_layers=1)
    cache = AlibiWindowCache.from_qk_norm(model)
    prompt = draw_tokens(1, 10)
    sizes = []

    def note_size(module, args, output) -> None:
        sizes.append(cache.num_bytes)

    handle = model.register_forward_hook(note_size)
    tokens = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        past_key_values=cache,
        min_new_tokens=100_000,
        max_new_tokens=100_000,
        do_sample=False,
    )
    handle.remove()
    assert tokens.shape == (1, 100_010)
    assert max(sizes[1000:]) == max(sizes[:1000])
    # The end of the text, far beyond any window, read at once.
    model.set_attn_implementation("sdpa")
    logits = model(tokens[:, -2000:-1]).logits
    assert torch.equal(logits[0, -500:].argmax(-1), tokens[0, -500:])
