"""`sdpa` on a CPU leaves out what float32 cannot add, and nothing more: against float64, and without subnormals."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from modeling_alibi_gpt import attention, attention_folded, attention_strips
from modeling_alibi_gpt.alibi import alibi_slopes
from modeling_alibi_gpt.attention import reading_every_key
from modeling_alibi_gpt.attention_bounds import exact_tolerance
from modeling_alibi_gpt.attention_context import AttentionContext
from modeling_alibi_gpt.attention_folded import FoldedAttention, hide_far
from modeling_alibi_gpt.attention_segments import Segment
from modeling_alibi_gpt.attention_strips import StripAttention
from tests.support.attention_cases import (
    ADVERSARIES,
    SCALING,
    adversarial,
    band_tiles,
    dense_reference,
    draw,
    find_bands_from,
    pairs_read,
    reference,
    whole,
)
from tests.support.exact_cases import make_model
from tests.support.strips import strip_attention


EXACT = exact_tolerance(torch.float32)
# exp of float32 gives subnormal numbers between these, and 0 below.
SUBNORMAL_NATS = (math.log(2.0**-149) - math.log(2), math.log(2.0**-126))


def test_exact_means_a_sixty_fourth_of_half_a_unit_in_the_last_place() -> None:
    assert EXACT == exact_tolerance(torch.bfloat16) == 2.0**-30
    assert exact_tolerance(torch.float64) == 2.0**-59
    total = torch.tensor([1.0, 1.7, 2.0 - 2**-23])
    assert torch.equal(total + EXACT * total, total)


@pytest.mark.parametrize("length", [1537, 2048])
@pytest.mark.parametrize("num_heads", [1, 3, 8, 12])
def test_long_texts_equal_float64_forward_and_backward(
    num_heads: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As exactly as the same kernel does when it reads every key, because its rounding is the same."""
    find_bands_from(monkeypatch, 2)
    tensors, slopes = draw(num_heads, length, length, rows=1), alibi_slopes(num_heads)
    context = AttentionContext.from_lengths(length, length, torch.float32)
    direction = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(0))
    expected = dense_reference(*tensors, slopes)
    expected = [expected, *torch.autograd.grad(expected, tensors, direction.double())]
    errors = {}
    for tolerance in (0.0, EXACT):
        output = StripAttention(context, tolerance, slopes).attend(*tensors, SCALING, 0.0)
        found = [output, *torch.autograd.grad(output, tensors, direction)]
        errors[tolerance] = [
            (part.double() - exact).abs().max().item() for part, exact in zip(found, expected, strict=True)
        ]
    for every, exact, size in zip(*errors.values(), expected, strict=True):
        # Sums in another order round by another unit or two of the largest number among them.
        assert exact <= every + 2 * torch.finfo(torch.float32).eps * size.abs().max().item()


def test_long_packed_documents_equal_float64() -> None:
    """Steep slopes, documents of all lengths, among them one token and some that are banded."""
    edges = (0, 400, 401, 1337, 1537)
    segments = [Segment(slice(0, 1), slice(*edge), edge[0]) for edge in itertools.pairwise(edges)]
    for beta in (1.0, 64.0):
        query, key, value = (tensor.detach() for tensor in draw(8, 1537, 1537, rows=1))
        slopes = alibi_slopes(8, beta=beta)
        output = strip_attention(query, key, value, slopes, band_tiles(query, key, slopes, segments, EXACT), SCALING)
        # Far inside the 1e-4 that rounded scores may cost.
        torch.testing.assert_close(output.double(), reference(query, key, value, slopes, segments), atol=2e-6, rtol=0)


@pytest.mark.parametrize("by_block", [False, True])
@pytest.mark.parametrize("length", [200, 700, 1537])
@pytest.mark.parametrize("beta", [0.25, 1.0, 8.0, 64.0])
@pytest.mark.parametrize("num_heads", [3, 8])
def test_no_exponential_is_subnormal(num_heads: int, beta: float, length: int, by_block: bool) -> None:
    """Those of standard normal queries and keys; with every key read, slopes and length make many."""
    query, key, _ = (tensor.detach() for tensor in draw(num_heads, length, length, rows=1))
    slopes = alibi_slopes(num_heads, beta=beta)
    is_read = pairs_read(band_tiles(query, key, slopes, whole(1, length), EXACT, by_block), num_heads, length)
    is_subnormal = subnormal_pairs(query, key, slopes)
    assert not (is_subnormal & is_read).any()
    if slopes.max() * length > 200:
        assert is_subnormal.sum() > 2 * length


@pytest.mark.parametrize("by_block", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ADVERSARIES)
def test_an_exponential_is_subnormal_only_by_its_content(kind: str, seed: int, by_block: bool) -> None:
    """With contents within r nats of 0, keys are read while their bias is at most 2 r below what cannot count."""
    length = 700
    query, key, _ = adversarial(kind, 4, length, seed)
    slopes = alibi_slopes(4, beta=8.0)
    is_read = pairs_read(band_tiles(query, key, slopes, whole(1, length), EXACT, by_block), 4, length)
    is_subnormal = subnormal_pairs(query, key, slopes)
    centred = key - key.mean(2, keepdim=True)
    content = SCALING * query.norm(dim=-1).amax(-1)[0] * centred.norm(dim=-1).amax(-1)[0]
    lowest = -(4 * content + math.log(2 / EXACT) - torch.log(-torch.expm1(-slopes)) + 1.0)
    can_be_subnormal = lowest < SUBNORMAL_NATS[1]
    assert not (is_subnormal & is_read)[~can_be_subnormal].any()
    assert (~can_be_subnormal).any() == (kind not in ("huge", "sink", "distant lover"))
    # Even there, most of what slopes alone would push down is not read.
    if kind != "huge":
        assert (is_subnormal & is_read).sum() < is_subnormal.sum() / 16


def subnormal_pairs(query: Tensor, key: Tensor, slopes: Tensor) -> Tensor:
    """``(H, T, T)``, where the exponential of a score below the largest of its row is a subnormal float32."""
    length = query.shape[2]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    scores = torch.matmul(query[0], key[0].mT) * SCALING - slopes[:, None, None] * distance
    scores = scores.masked_fill(distance < 0, -torch.inf)
    below = scores - scores.amax(-1, keepdim=True)
    return (below > SUBNORMAL_NATS[0]) & (below < SUBNORMAL_NATS[1])


@torch.no_grad()
def test_a_switch_reads_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MIN_LONG_PAIRS", 2)
    num_read = []
    attend = attention_strips.attend_tiles

    def observe(query: Tensor, key: Tensor, value: Tensor, toeplitz: object, tiles: list, *args: float) -> Tensor:
        num_read.append(pairs_read(tiles, query.shape[1], query.shape[2]).tril().sum().item())
        return attend(query, key, value, toeplitz, tiles, *args)

    monkeypatch.setattr(attention_strips, "attend_tiles", observe)
    model = make_model("alibi", alibi_beta=64.0)
    tokens = torch.randint(model.config.vocab_size, (1, 200), generator=torch.Generator().manual_seed(0))
    near = model(tokens).logits
    with reading_every_key():
        every = model(tokens).logits
    num_layers = model.config.num_hidden_layers
    every_pair = model.config.num_attention_heads * 200 * 201 // 2
    assert num_read[num_layers:] == num_layers * [every_pair]
    assert max(num_read[:num_layers]) < every_pair
    torch.testing.assert_close(near, every, atol=1e-5, rtol=0)


@pytest.mark.parametrize("back_end", ["eager", "sdpa"])
@torch.no_grad()
def test_short_texts_hide_what_cannot_count(back_end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding in between keeps the folded mask; `sdpa` hides far keys in it, the definition does not."""
    masks = []
    attend = FoldedAttention.attend

    def observe(self: FoldedAttention, *args: object) -> Tensor:
        masks.append(self)
        return attend(self, *args)

    monkeypatch.setattr(FoldedAttention, "attend", observe)
    model = make_model("grouped_8_2", back_end, alibi_beta=64.0)
    tokens = torch.randint(model.config.vocab_size, (2, 60), generator=torch.Generator().manual_seed(0))
    visible = torch.ones(2, 60, dtype=torch.long)
    visible[1, 7:20] = 0
    logits = model(tokens, attention_mask=visible).logits
    assert bool(masks) == (back_end == "sdpa")
    expected = make_model("grouped_8_2", "eager", torch.float64, alibi_beta=64.0)(tokens, attention_mask=visible)
    torch.testing.assert_close(logits.double()[visible.bool()], expected.logits[visible.bool()], atol=1e-5, rtol=0)


def mask_of_slope(slope: float, length: int) -> Tensor:
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return torch.where(distance >= 0, -slope * distance, torch.finfo(torch.float32).min)[None, None]


@pytest.mark.parametrize(("slope", "length"), [(0.5, 300), (0.1, 900)])
def test_keys_hidden_together_cannot_count(slope: float, length: int) -> None:
    """A flat slope hides hundreds of keys, of which each has nearly the weight of the nearest."""
    mask = mask_of_slope(slope, length)
    near_mask = hide_far(mask, EXACT)
    assert near_mask is not None and hide_far(mask[..., :60, :60], EXACT) is None
    lost = mask.double().exp().masked_fill(near_mask == mask, 0.0).sum(-1)
    assert 0 < lost.max() * math.exp(attention_folded._CONTENT_NATS) <= EXACT


def test_far_keys_are_hidden_only_where_contents_cannot_win_them_back() -> None:
    length, mask = 300, mask_of_slope(0.5, 300)
    near_mask = hide_far(mask, EXACT)
    query, key, value = (tensor.detach() for tensor in draw(1, length, length, rows=1))
    for size in (1.0, 30.0):
        # A query that loves a key far away: at thirty times the length it has all the weight.
        key[0, 0, 0] = size * query[0, 0, -1]
        output = FoldedAttention(mask, near_mask).attend(size * query, key, value, SCALING, 0.0)
        expected = dense_reference(size * query, key, value, torch.tensor([0.5]))
        torch.testing.assert_close(output.double(), expected, atol=1e-4 * size, rtol=0)
