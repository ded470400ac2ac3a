"""The exactness matrix: every option that changes the mathematics, fed in every way, against the float64 reference."""

import copy
import functools
import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from transformers import DynamicCache, StaticCache

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM, attention
from modeling_alibi_gpt.attention_strips import StripAttention
from tests.support.attention_cases import find_bands_from
from tests.support.exact_cases import BATCHES, CASES, POSITION_CASES, SMALL, Batch, make_model
from tests.support.reference import layer_slopes, reference_logits, slopes_of_query


TOLERANCE = 1e-5  # promised for float32 logits of order one
TOLERANCE_FLOAT64 = 1e-10

BACK_ENDS = ("eager", "sdpa")
LENGTHS = (1, 2, 63, 65, 200)
CHUNKS = (7, 5, *[1] * 7)

# Fields that cannot be switched off alone while the weights stay.
STRUCTURAL = (
    *("num_attention_heads", "num_key_value_heads", "head_dim", "use_bias", "alibi_slopes"),
    *("t5_num_buckets", "kerple_variant", "fire_threshold", "fire_hidden_size", "fire_shared_by_layers"),
)
LONG_CASES = (
    *("heads_1", "heads_3", "heads_8", "heads_12", "alibi_dynamic_linear", "alibi_dynamic_ntk"),
    *("sinusoidal", "learned", "rope", "none", "rope_dynamic_ntk", "rope_yarn"),
    *("t5", "shared_offset", "kerple", "kerple_power", "fire_shared", "sandwich_dim"),
)
GRADIENT_CASES = (
    *("alibi", "alibi_inside", "alibi_trained_beta", "alibi_trained_slopes", "alibi_trained_slopes_dynamic"),
    *("sinusoidal", "learned", "rope", "rope_yarn"),
    *("t5", "shared_offset", "kerple", "kerple_power", "fire", "fire_shared", "sandwich_dim"),
    *("qk_norm", "clip_qkv", "no_bias", "embedding_layer_norm", "untied"),
)


shared_model = functools.cache(make_model)


@functools.cache
def expected_logits(case: str, layout: str, slope_dtype: type = np.float64) -> np.ndarray:
    model = shared_model(case)
    return batch_reference(model.state_dict(), model.config, BATCHES[layout], slope_dtype)


def batch_reference(
    weights: Mapping[str, ArrayLike], config: AlibiGPTConfig, batch: Batch, slope_dtype: type = np.float64
) -> np.ndarray:
    return reference_logits(
        weights,
        config,
        batch.token_ids,
        document_ids=batch.document_ids,
        visible=batch.visible,
        slope_dtype=slope_dtype,
    )


def max_error(logits: torch.Tensor, expected: np.ndarray, visible: torch.Tensor | None = None) -> float:
    """Largest error over the visible tokens; the others mean nothing, but must not be NaN."""
    assert torch.isfinite(logits).all()
    errors = np.abs(logits.double().numpy() - expected)
    return (errors if visible is None else errors[visible.bool().numpy()]).max()


def feed_at_once(model: AlibiGPTForCausalLM, batch: Batch, use_cache: bool = False) -> torch.Tensor:
    return model(
        batch.token_ids, attention_mask=batch.visible, position_ids=batch.position_ids, use_cache=use_cache
    ).logits


def feed_at_once_cached(model: AlibiGPTForCausalLM, batch: Batch) -> torch.Tensor:
    return feed_at_once(model, batch, use_cache=True)


def feed_chunks(
    model: AlibiGPTForCausalLM, batch: Batch, cache: DynamicCache | StaticCache, whole_mask: bool = False
) -> torch.Tensor:
    """Prefill of 7, a chunk of 5 and seven decoded tokens; positions are left to the model."""
    logits = []
    for start, end in itertools.pairwise(itertools.accumulate(CHUNKS, initial=0)):
        visible = batch.visible if batch.visible is None or whole_mask else batch.visible[:, :end]
        chunk = batch.token_ids[:, start:end]
        logits.append(model(chunk, attention_mask=visible, past_key_values=cache, use_cache=True).logits)
    return torch.cat(logits, dim=1)


def feed_dynamic(model: AlibiGPTForCausalLM, batch: Batch) -> torch.Tensor:
    return feed_chunks(model, batch, DynamicCache(config=model.config))


def feed_whole_mask(model: AlibiGPTForCausalLM, batch: Batch) -> torch.Tensor:
    """Chunks, each with the padding mask of the whole text."""
    return feed_chunks(model, batch, DynamicCache(config=model.config), whole_mask=True)


def feed_static(model: AlibiGPTForCausalLM, batch: Batch) -> torch.Tensor:
    return feed_chunks(model, batch, StaticCache(config=model.config, max_cache_len=24))


FEEDS = {
    "at_once": feed_at_once,
    "cached": feed_at_once_cached,
    "dynamic": feed_dynamic,
    "whole_mask": feed_whole_mask,
    "static": feed_static,
}
INPUTS = [(layout, feed) for layout, feed in itertools.product(BATCHES, FEEDS) if "packed" not in layout]
INPUTS.remove(("whole", "whole_mask"))  # has no mask
INPUTS += itertools.product(["packed", "packed_padded"], ["at_once", "cached"])
FEW_INPUTS = [
    *(("whole", "at_once"), ("left", "dynamic"), ("middle", "static")),
    *(("packed", "cached"), ("packed_padded", "at_once")),
]
# Positions meet every layout and cache in their own way; the rest of the architecture does not know of them.
MATRIX = [(case, *inputs) for case in CASES for inputs in (INPUTS if case in POSITION_CASES else FEW_INPUTS)]


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize(("case", "layout", "feed"), MATRIX)
@torch.no_grad()
def test_logits_equal_the_reference(case: str, layout: str, feed: str, back_end: str) -> None:
    logits = FEEDS[feed](shared_model(case, back_end), BATCHES[layout])
    assert max_error(logits, expected_logits(case, layout), BATCHES[layout].visible) <= TOLERANCE


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize(("layout", "feed"), FEW_INPUTS)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_float64_logits_equal_the_reference(case: str, layout: str, feed: str, back_end: str) -> None:
    logits = FEEDS[feed](shared_model(case, back_end, torch.float64), BATCHES[layout])
    expected = expected_logits(case, layout, np.float32)
    assert max_error(logits, expected, BATCHES[layout].visible) <= TOLERANCE_FLOAT64


HAVE_HOLES = ("middle", "packed_padded")  # padding between visible tokens
# Methods whose bias is a function of distance, which long texts need not write down.
OF_DISTANCE = ("alibi", "t5", "shared_offset", "kerple", "sandwich")
# Segments of tokens need no padding in between and a cache that ends with the last token; bands one slope a head.
LONG_MATRIX = [
    (case, layout, feed, back_end)
    for case, layout, feed, back_end in itertools.product(POSITION_CASES, BATCHES, FEEDS, ("sdpa", "alibi_banded"))
    if case.startswith(OF_DISTANCE)
    and (layout, feed) in INPUTS
    and (
        back_end == "sdpa"
        or (case.startswith("alibi") and not (layout in HAVE_HOLES or feed == "static" or "dynamic" in case))
    )
]


def run_long_ways_on_short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MIN_LONG_PAIRS", 2)
    monkeypatch.setattr(attention, "MIN_LONG_QUERIES", 2)
    find_bands_from(monkeypatch, 2)


@pytest.mark.parametrize(("case", "layout", "feed", "back_end"), LONG_MATRIX)
@torch.no_grad()
def test_long_ways_equal_the_reference(
    case: str, layout: str, feed: str, back_end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_long_ways_on_short_texts(monkeypatch)
    logits = FEEDS[feed](shared_model(case, back_end), BATCHES[layout])
    assert max_error(logits, expected_logits(case, layout), BATCHES[layout].visible) <= TOLERANCE


@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize("back_end", ["eager", "sdpa", "alibi_banded"])
@pytest.mark.parametrize("field", ["embd_pdrop", "resid_pdrop", "attention_dropout"])
@torch.no_grad()
def test_dropout_is_of_training_alone(
    field: str, back_end: str, is_long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_long:
        run_long_ways_on_short_texts(monkeypatch)
    model = make_model("alibi", back_end, **{field: 0.3})
    calm, one, other, after = (model.train(mode)(long_tokens()).logits for mode in (False, True, True, False))
    assert torch.equal(calm, after)
    assert not torch.equal(one, calm) and not torch.equal(one, other)


# A CPU takes flex attention by its slow definition, so a case for each way to a bias meets the layouts and caches.
FLEX_CASES = ("alibi_inside", "alibi_dynamic_ntk", "alibi_trained_slopes", "t5", "fire", "rope", "learned", "heads_1")
FLEX_MATRIX = [("alibi", *inputs) for inputs in INPUTS] + [
    (case, *inputs) for case in FLEX_CASES for inputs in FEW_INPUTS
]


@pytest.mark.parametrize(("case", "layout", "feed"), FLEX_MATRIX)
@torch.no_grad()
def test_flex_attention_equals_the_reference(case: str, layout: str, feed: str) -> None:
    logits = FEEDS[feed](shared_model(case, "flex_attention"), BATCHES[layout])
    assert max_error(logits, expected_logits(case, layout), BATCHES[layout].visible) <= TOLERANCE


@pytest.mark.parametrize("back_end", ["sdpa", "alibi_banded", "flex_attention"])
@torch.no_grad()
def test_long_chunks_with_the_mask_of_the_whole_text(back_end: str) -> None:
    """Long enough for strips, and the last chunk ends before the mask does."""
    lengths, generator = torch.tensor([[1050], [1200]]), torch.Generator().manual_seed(5)
    tokens = torch.randint(SMALL["vocab_size"], (2, 1200), generator=generator)
    mask = (torch.arange(1200) < lengths).long()
    expected = shared_model("alibi", "eager")(tokens, attention_mask=mask).logits[:, :1100]
    model = shared_model("alibi", back_end)
    cache = DynamicCache(config=model.config)
    chunks = [model(chunk, attention_mask=mask, past_key_values=cache) for chunk in tokens[:, :1100].split(600, dim=1)]
    logits = torch.cat([chunk.logits for chunk in chunks], dim=1)
    assert max_error(logits, expected.double().numpy(), mask[:, :1100]) <= 2 * TOLERANCE  # of two float32 results


@pytest.mark.parametrize("length", [12, 600])
@pytest.mark.parametrize("back_end", ["eager", "sdpa", "alibi_banded", "flex_attention"])
@torch.no_grad()
def test_a_padding_mask_of_one_row_is_that_of_every_row(back_end: str, length: int) -> None:
    model = shared_model("alibi", back_end)
    tokens = torch.randint(SMALL["vocab_size"], (3, length), generator=torch.Generator().manual_seed(7))
    mask = (torch.arange(length) >= 5).long()[None]
    found, expected = (model(tokens, attention_mask=each).logits[:, 5:] for each in (mask, mask.expand(3, -1)))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=TOLERANCE)


@pytest.mark.parametrize("back_end", BACK_ENDS)
@torch.no_grad()
def test_a_mask_of_one_row_continues_a_static_cache(back_end: str) -> None:
    model, batch = shared_model("alibi", back_end), BATCHES["left"]
    mask = batch.visible[1:2]
    caches = [StaticCache(config=model.config, max_cache_len=24) for _ in range(2)]
    found, expected = (
        feed_chunks(model, Batch(batch.token_ids, visible), cache)[:, 7:]
        for visible, cache in zip((mask, mask.expand(3, -1)), caches, strict=True)
    )
    torch.testing.assert_close(found, expected, rtol=0.0, atol=TOLERANCE)


@pytest.mark.parametrize("back_end", BACK_ENDS)
@torch.no_grad()
def test_a_4d_mask_of_one_row_is_that_of_every_row(back_end: str) -> None:
    model, tokens = shared_model("alibi", back_end), BATCHES["whole"].token_ids
    mask = torch.ones(19, 19).tril().bool()[None, None]
    found, expected = (model(tokens, attention_mask=each).logits for each in (mask, mask.expand(3, -1, -1, -1)))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=TOLERANCE)


@functools.cache
def expected_long_logits(case: str) -> np.ndarray:
    model = shared_model(case)
    return reference_logits(model.state_dict(), model.config, long_tokens())


def long_tokens() -> torch.Tensor:
    return torch.randint(SMALL["vocab_size"], (1, max(LENGTHS)), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("case", LONG_CASES)
@torch.no_grad()
def test_every_length_equals_the_reference(case: str, length: int, back_end: str) -> None:
    """A causal model gives a prefix the logits it has in the whole, so the longest reference serves every length."""
    logits = shared_model(case, back_end)(long_tokens()[:, :length]).logits
    assert max_error(logits, expected_long_logits(case)[:, :length]) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_the_matrix_would_notice_a_missing_option(case: str) -> None:
    """Logits are of order one, and far away as soon as one thing that the case asks for is switched off."""
    model = shared_model(case)
    logits = expected_logits(case, "whole")
    assert 1.0 < np.abs(logits).max() < 10.0
    defaults = AlibiGPTConfig(**SMALL)
    switched_off = {field: getattr(defaults, field) for field in CASES[case] if field not in STRUCTURAL}
    if case != "none":
        switched_off["position_method"] = "none"
    for field, value in switched_off.items():
        config = copy.deepcopy(model.config)
        setattr(config, field, value)
        without = batch_reference(model.state_dict(), config, BATCHES["whole"])
        assert np.abs(without - logits).max() > (0.1 if field == "position_method" else 50 * TOLERANCE), field


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("case", POSITION_CASES)
@torch.no_grad()
def test_a_batch_of_many_equals_batches_of_one(case: str, back_end: str) -> None:
    model, batch = shared_model(case, back_end, torch.float64), BATCHES["left"]
    together = feed_at_once(model, batch)
    for row, length in enumerate(batch.visible.sum(-1).tolist()):
        alone = model(batch.token_ids[row : row + 1, -length:]).logits
        torch.testing.assert_close(together[row : row + 1, -length:], alone, rtol=0.0, atol=TOLERANCE_FLOAT64)


@pytest.mark.parametrize("case", [case for case in POSITION_CASES if case.startswith("alibi")])
@torch.no_grad()
def test_equal_tokens_are_attended_by_the_bias_alone(case: str) -> None:
    """Equal tokens have equal scores in every layer, so that the attention rows are the softmax of the bias."""
    model = shared_model(case, "eager", torch.float64)
    config, length = model.config, 40
    attentions = model(torch.full((1, length), 7), output_attentions=True).attentions
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    slopes = layer_slopes(weights, config, np.float32)
    scale = config.scaling if config.alibi_bias_inside_scaling else 1.0
    for layer, position in itertools.product(range(config.num_hidden_layers), range(length)):
        distance = torch.arange(position, -1, -1)
        query_slopes = torch.from_numpy(slopes_of_query(config, slopes[layer], position))
        expected = torch.softmax(-scale * query_slopes[:, None] * distance, dim=-1)
        rows = attentions[layer][0, :, position]
        torch.testing.assert_close(rows[:, : position + 1], expected, rtol=0.0, atol=TOLERANCE_FLOAT64)
        assert not rows[:, position + 1 :].any()


def short_batch(layout: str) -> Batch:
    """Ten slots, for finite differences compute the reference often; one left-padded row is nothing but padding."""
    return BATCHES[layout].first(10)


def random_probe(batch: Batch, only_visible: bool = False) -> torch.Tensor:
    """Random weights that make a scalar loss of the logits; all of them as the loss of a left-padded text has it.

    There the last token of the padding predicts the first one of the text, so what padding computes has gradients too.
    """
    generator = torch.Generator().manual_seed(3)
    probe = torch.randn(*batch.token_ids.shape, SMALL["vocab_size"], generator=generator, dtype=torch.float64)
    probe /= probe.numel() ** 0.5
    return probe * batch.visible[..., None] if only_visible and batch.visible is not None else probe


def gradients(
    case: str,
    layout: str,
    back_end: str,
    *,
    dtype: torch.dtype = torch.float64,
    checkpointing: bool = False,
    only_visible: bool = False,
    **fields: float,
) -> dict[str, torch.Tensor]:
    """Gradient of the probed logits by every parameter, in float64 whatever the model computes in."""
    model, batch = make_model(case, back_end, dtype, **fields), short_batch(layout)
    if checkpointing:
        model.train().activation_checkpointing_enable()
    (feed_at_once(model, batch) * random_probe(batch, only_visible)).sum().backward()
    return {name: parameter.grad.double() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("layout", "case"), list(zip(itertools.cycle(["left", "packed", "middle"]), GRADIENT_CASES)))
def test_gradients_equal_finite_differences_of_the_reference(case: str, layout: str) -> None:
    """Every parameter along one random direction, by central differences of the float64 reference."""
    model, batch, step = shared_model(case), short_batch(layout), 1e-6
    probe = random_probe(batch, only_visible=True).numpy()
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    analytic = gradients(case, layout, "eager", only_visible=True)

    def reference_loss(changed: dict[str, np.ndarray]) -> float:
        return np.nansum(probe * batch_reference(weights | changed, model.config, batch, np.float32))

    for name, gradient in analytic.items():
        direction = np.random.default_rng(4).standard_normal(gradient.shape)
        direction /= np.linalg.norm(direction)
        ahead = reference_loss({name: weights[name] + step * direction})
        behind = reference_loss({name: weights[name] - step * direction})
        expected = (gradient.numpy() * direction).sum()
        assert abs((ahead - behind) / (2 * step) - expected) < 1e-6, name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, TOLERANCE_FLOAT64), (torch.float32, TOLERANCE)])
@pytest.mark.parametrize(("back_end", "checkpointing"), [("eager", True), ("sdpa", False), ("sdpa", True)])
@pytest.mark.parametrize("layout", ["left", "packed"])
@pytest.mark.parametrize("case", ["alibi", "alibi_trained_beta", "alibi_trained_slopes", "rope"])
def test_gradients_depend_on_neither_back_end_nor_checkpointing(
    case: str, layout: str, back_end: str, checkpointing: bool, dtype: torch.dtype, tolerance: float
) -> None:
    expected = eager_gradients(case, layout)
    for name, gradient in gradients(case, layout, back_end, dtype=dtype, checkpointing=checkpointing).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0.0, atol=tolerance, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("back_end", "layout"),
    [*itertools.product(["sdpa", "alibi_banded"], ["left", "packed"]), ("sdpa", "middle")],
)
@pytest.mark.parametrize("case", ["alibi", "alibi_trained_beta", "alibi_trained_slopes", "alibi_inside"])
def test_gradients_of_long_ways(
    case: str, layout: str, back_end: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding included; bands leave out weights of 1e-12 here, far below the tolerance of gradients."""
    run_long_ways_on_short_texts(monkeypatch)
    expected = eager_gradients(case, layout)
    found = gradients(case, layout, back_end, checkpointing=checkpointing, alibi_tolerance=1e-12)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0.0, atol=TOLERANCE_FLOAT64, msg=name)


@pytest.mark.parametrize(
    ("case", "layout", "feed", "message"),
    [
        ("alibi", "middle", "at_once", "padding between visible tokens"),
        ("alibi", "whole", "static", "static caches"),
        ("alibi_dynamic_ntk", "whole", "at_once", "dynamic alibi_scaling"),
        ("rope", "whole", "at_once", "position_method 'alibi'"),
    ],
)
@torch.no_grad()
def test_bands_refuse_what_they_cannot_do(case: str, layout: str, feed: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FEEDS[feed](shared_model(case, "alibi_banded"), BATCHES[layout])


@functools.cache
def eager_gradients(case: str, layout: str) -> dict[str, torch.Tensor]:
    return gradients(case, layout, "eager")


@pytest.mark.parametrize("case", ["t5", "shared_offset", "kerple", "kerple_power", "sandwich"])
def test_a_bias_of_distance_is_written_down_only_where_it_learns(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_long_ways_on_short_texts(monkeypatch)
    kinds = []
    prepare = attention.ATTENTION_BACKENDS["sdpa"].prepare

    def observe(*args: object) -> attention.LayerMask:
        kinds.append(type(mask := prepare(*args)))
        return mask

    backend = attention.ATTENTION_BACKENDS["sdpa"]._replace(prepare=observe)
    monkeypatch.setitem(attention.ATTENTION_BACKENDS, "sdpa", backend)
    model = shared_model(case)
    with torch.no_grad():
        model(BATCHES["whole"].token_ids)
    model(BATCHES["whole"].token_ids)
    learns = any(parameter.requires_grad for parameter in model.model.position_method.parameters())
    assert kinds[0] is StripAttention
    assert (kinds[1] is not StripAttention) == learns
