"""Positions and visibility of each way to call the model: padding, documents, a cache and continuous batching."""

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from modeling_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.attention_context import AttentionContext, attention_context
from modeling_alibi_gpt.attention_inputs import ForwardInputs
from modeling_alibi_gpt.attention_segments import Segment


CONFIG = AlibiGPTConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, attn_implementation="sdpa")


def inputs_of(rows: int, q_len: int, **fields) -> ForwardInputs:
    return ForwardInputs(CONFIG, torch.zeros(rows, q_len, 8), **fields)


def assert_visible(context: AttentionContext, expected: Tensor) -> None:
    assert torch.equal(context.mask().expand(expected.shape[0], -1, -1, -1)[:, 0], expected)


def test_padding_counts_visible_tokens() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    context = attention_context(inputs_of(2, 4, attention_mask=mask), {})
    assert context.query_positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]
    assert context.segments() == [
        Segment(slice(0, 1), slice(2, 4), 2),
        Segment(slice(1, 2), slice(0, 3), 0),
    ]
    assert not context.is_whole
    visible = mask.bool()[:, None] & torch.ones(4, 4, dtype=torch.bool).tril()
    fully_masked = ~visible.any(-1)
    assert fully_masked.nonzero().tolist() == [[0, 0], [0, 1]]
    assert_visible(context, visible | (torch.eye(4, dtype=torch.bool) & fully_masked[..., None]))
    assert context.first_keys().tolist() == [[0, 1, 2, 2], [0, 0, 0, 3]]
    in_no_segment = context.fully_masked_queries()[:, 0, :, 0]
    assert in_no_segment.tolist() == [[True, True, False, False], [False, False, False, True]]


def test_documents_restart_and_do_not_see_each_other() -> None:
    position_ids = torch.tensor([[0, 1, 0, 1, 2]])
    context = attention_context(inputs_of(1, 5, position_ids=position_ids), {})
    assert torch.equal(context.key_positions, position_ids)
    assert context.segments() == [Segment(slice(0, 1), slice(0, 2), 0), Segment(slice(0, 1), slice(2, 5), 2)]
    document = torch.tensor([0, 0, 1, 1, 1])
    assert_visible(context, (torch.ones(5, 5).tril().bool() & (document[:, None] == document))[None])


@pytest.mark.parametrize("positions", [[1, 0, 1, 1, 2, 0, 1, 1], [1, 0, 1, 2, 3, 0, 1, 2]])
def test_documents_restart_between_padding(positions: list[int]) -> None:
    """Positions may skip the padding or count it."""
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 0]])
    context = attention_context(inputs_of(1, 8, attention_mask=mask, position_ids=torch.tensor([positions])), {})
    assert context.query_positions.tolist() == [[0, 0, 1, 1, 2, 0, 1, 1]]
    assert context.segments() is None  # the first document has padding in between
    document = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    visible = mask.bool()[:, None] & torch.ones(8, 8).tril().bool() & (document[:, None] == document)
    fully_masked = ~visible.any(-1)
    assert fully_masked.nonzero().tolist() == [[0, 0]]
    assert_visible(context, visible | (torch.eye(8, dtype=torch.bool) & fully_masked[..., None]))


def test_documents_between_padding_are_segments() -> None:
    mask, position_ids = torch.tensor([[0, 1, 1, 1, 0, 1]]), torch.tensor([[1, 0, 1, 0, 1, 0]])
    context = attention_context(inputs_of(1, 6, attention_mask=mask, position_ids=position_ids), {})
    rows = slice(0, 1)
    assert context.segments() == [
        Segment(rows, slice(1, 3), 1),
        Segment(rows, slice(3, 4), 3),
        Segment(rows, slice(5, 6), 5),
    ]
    assert context.first_keys().tolist() == [[0, 1, 1, 3, 4, 5]]


def test_positions_of_one_document_change_nothing() -> None:
    """Generation passes positions with its padding masks."""
    mask = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 1]])
    position_ids = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    given = attention_context(inputs_of(2, 4, attention_mask=mask, position_ids=position_ids), {})
    assert given.slots.documents is None
    assert torch.equal(
        given.query_positions, attention_context(inputs_of(2, 4, attention_mask=mask), {}).query_positions
    )


def test_a_padding_mask_may_hold_any_number() -> None:
    """Some collators number the documents of a row in its mask."""
    mask = torch.tensor([[0, 1, 1, 2, 2, 0]])
    expected = attention_context(inputs_of(1, 6, attention_mask=mask.bool()), {})
    for kind in (torch.int64, torch.int8, torch.float16):
        context = attention_context(inputs_of(1, 6, attention_mask=mask.to(kind)), {})
        assert torch.equal(context.query_positions, expected.query_positions)
        assert torch.equal(context.mask(), expected.mask()) and context.segments() == expected.segments()


@pytest.mark.parametrize("may_skip_mask", [False, True])
def test_documents_do_not_see_each_other_in_both_directions(
    may_skip_mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CONFIG, "is_causal", False, raising=False)
    position_ids = torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]])
    context = attention_context(inputs_of(2, 5, position_ids=position_ids, may_skip_mask=may_skip_mask), {})
    document = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
    assert_visible(context, document[:, :, None] == document[:, None])


def test_starts_of_sequences_are_documents() -> None:
    """As FlashAttention takes them; positions come first."""
    starts = torch.tensor([0, 2, 3, 7], dtype=torch.int32)
    context = attention_context(inputs_of(1, 7), {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts})
    assert context.query_positions.tolist() == [[0, 1, 0, 0, 1, 2, 3]]
    assert [segment.first_key for segment in context.segments()] == [0, 2, 3]
    two_rows = attention_context(inputs_of(2, 7), {"cu_seq_lens_q": torch.cat([starts, starts[1:] + 7])})
    assert two_rows.query_positions.tolist() == 2 * context.query_positions.tolist()
    one = attention_context(inputs_of(1, 7, position_ids=torch.arange(7)[None]), {"cu_seq_lens_q": starts})
    assert len(one.segments()) == 1
    no_padding = attention_context(inputs_of(1, 7, attention_mask=torch.ones(1, 7)), {"cu_seq_lens_q": starts})
    assert no_padding.segments() == context.segments()


@pytest.mark.parametrize("what", ["padding mask", "4D mask", "cache", "static cache"])
def test_starts_of_sequences_that_would_be_ignored_are_refused(what: str) -> None:
    fields = {
        "padding mask": {"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1, 1]])},
        "4D mask": {"attention_mask": torch.ones(1, 1, 7, 7, dtype=torch.bool).tril()},
        "cache": {"cache": with_cached(2)},
        "static cache": {"cache": StaticCache(config=CONFIG, max_cache_len=16)},
    }[what]
    starts = torch.tensor([0, 2, 3, 7], dtype=torch.int32)
    with pytest.raises(ValueError, match=f"cu_seq_lens_q without position_ids: .* got such a {what.split()[-1]}"):
        attention_context(inputs_of(1, 7, **fields), {"cu_seq_lens_q": starts})


@pytest.mark.parametrize("mask", [torch.ones(1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.int64), {"full": None}])
def test_masks_of_other_kinds_are_refused(mask: object) -> None:
    with pytest.raises(ValueError, match=r"attention_mask: expected a padding mask \(batch, keys\), or a bool or"):
        attention_context(inputs_of(1, 4, attention_mask=mask), {})


@pytest.mark.parametrize(("num_rows", "mask_rows"), [(4, 2), (3, 5), (1, 2)])
@pytest.mark.parametrize("shape", [(6,), (1, 6, 6)])
@pytest.mark.parametrize("first", [0, 1])
def test_masks_of_another_batch_are_refused(num_rows: int, mask_rows: int, shape: tuple[int, ...], first: int) -> None:
    """A mask that hides nothing, too."""
    mask = torch.ones(mask_rows, *shape, dtype=torch.bool)
    mask[..., 0] = bool(first)
    with pytest.raises(ValueError, match=f"attention_mask: expected one row, or {num_rows} as .*, got {mask_rows}$"):
        attention_context(inputs_of(num_rows, 6, attention_mask=mask), {})


@pytest.mark.parametrize("shape", [(2, 6), (5, 6), (4, 5), (1, 7), (6,)])
@pytest.mark.parametrize("fields", [{}, {"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]])}, {"cached": True}])
def test_positions_of_another_shape_are_refused(shape: tuple[int, ...], fields: dict) -> None:
    positions = torch.arange(shape[-1]).expand(shape)
    fields = {"cache": with_cached(3)} if fields == {"cached": True} else fields
    with pytest.raises(ValueError, match=r"position_ids: expected shape \(1 or 4, 6\), .* got \(.*\)$"):
        attention_context(inputs_of(4, 6, position_ids=positions, **fields), {})


def with_cached(num_tokens: int) -> DynamicCache:
    cache = DynamicCache(config=CONFIG)
    cache.update(*torch.zeros(2, 2, 2, num_tokens, 4), 0)
    return cache


def test_a_mask_may_reach_beyond_the_tokens_of_a_call() -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]])
    found = attention_context(inputs_of(2, 2, attention_mask=mask, cache=with_cached(2)), {})
    expected = attention_context(inputs_of(2, 2, attention_mask=mask[:, :4], cache=with_cached(2)), {})
    assert found.segments() == expected.segments()
    assert torch.equal(found.mask(), expected.mask())
    assert attention_context(inputs_of(2, 2, attention_mask=mask[:, 1:]), {}).is_whole


def test_a_mask_of_the_new_tokens_alone_must_hide_nothing() -> None:
    mask = torch.tensor([[1, 1, 0]])
    with pytest.raises(ValueError, match="expected 5 columns, one for each cached and new token, got 3"):
        attention_context(inputs_of(1, 3, attention_mask=mask, cache=with_cached(2)), {})
    assert attention_context(inputs_of(1, 3, attention_mask=torch.ones(1, 3), cache=with_cached(2)), {}).is_whole


@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
def test_branches_of_a_tree_have_positions_of_their_own(cache_class: type[Cache]) -> None:
    """Three cached tokens, of which the first is padding in the second row, and two branches of two drafts."""
    cache = cache_class(config=CONFIG, **({"max_cache_len": 9} if cache_class is StaticCache else {}))
    cache.update(torch.zeros(2, 2, 3, 4), torch.zeros(2, 2, 3, 4), 0)
    kv_len, _ = cache.get_mask_sizes(4, 0)
    positions = torch.tensor([[3, 4, 3, 4], [2, 3, 2, 3]])
    mask = torch.ones(2, 1, 4, kv_len, dtype=torch.bool)
    context = attention_context(inputs_of(2, 4, attention_mask=mask, position_ids=positions, cache=cache), {})
    assert torch.equal(context.query_positions, positions)
    assert context.key_positions[:, :7].tolist() == [[0, 1, 2, 3, 4, 3, 4], [-1, 0, 1, 2, 3, 2, 3]]
    without = attention_context(inputs_of(2, 4, attention_mask=mask, cache=cache), {})
    assert without.key_positions.tolist() == [list(range(kv_len))]


def test_a_cache_puts_queries_last() -> None:
    cache = DynamicCache(config=CONFIG)
    cache.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 0)
    context = attention_context(inputs_of(1, 2, cache=cache), {})
    assert (context.query_positions.tolist(), context.key_positions.tolist()) == ([[3, 4]], [[0, 1, 2, 3, 4]])
    assert context.is_whole
    assert_visible(context, torch.ones(2, 5).tril(3).bool()[None])


def test_paged_keys_count_from_the_start_of_their_request() -> None:
    """Two requests with 3 and 2 keys, of which the last two and the last one are new."""
    mask, positions = torch.zeros(1, 1, 3, 5), torch.tensor([[1, 2, 1]])
    cache = PagedAttentionCache.__new__(PagedAttentionCache)
    inputs = inputs_of(1, 3, attention_mask=mask, position_ids=positions, cache=cache)
    starts = torch.tensor([0, 3, 5], dtype=torch.int32)
    for cu_seq_lens_k in (starts, {"full_attention": starts}):
        context = attention_context(inputs, {"cu_seq_lens_k": cu_seq_lens_k})
        assert context.key_positions.tolist() == [[0, 1, 2, 0, 1]]
        assert torch.equal(context.query_positions, positions)
        assert context.segments() is None and context.slots is None and not context.is_causal


def test_lengths_alone_are_the_last_queries_of_a_text() -> None:
    context = AttentionContext.from_lengths(2, 5, torch.float32)
    assert context.is_whole and context.segments() == [Segment(slice(0, 1), slice(0, 2), 0)]
    assert_visible(context, torch.ones(2, 5).tril(3).bool()[None])


def test_it_is_frozen_and_makes_its_mask_once() -> None:
    context = attention_context(inputs_of(1, 4), {})
    assert context.mask() is context.mask() and context.segments() is context.segments()
    with pytest.raises(dataclasses.FrozenInstanceError):
        context.num_rows = 2
