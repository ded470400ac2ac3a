"""Positions that float32 cannot tell apart, and biases below the range of float16."""

import pytest
import torch

from tests.support.exact_cases import make_model


# float32 represents the first of these positions as 2**24, and from there on every second one.
FAR = 2**24 + 1


@pytest.mark.parametrize(
    ("back_end", "length"),
    [("eager", 64), ("sdpa", 64), ("sdpa", 520), ("alibi_banded", 64), ("flex_attention", 64)],
)
@torch.no_grad()
def test_only_distances_between_positions_count(back_end: str, length: int) -> None:
    model, positions = make_model("alibi", back_end), torch.arange(length)[None]
    tokens = torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    near, far = (model(tokens, position_ids=positions + first, use_cache=False).logits for first in (0, FAR))
    assert torch.equal(near, far)


@pytest.mark.parametrize("is_additive", [False, True])
@pytest.mark.parametrize("back_end", ["eager", "sdpa"])
@torch.no_grad()
def test_hidden_keys_have_no_weight_where_all_visible_ones_are_far(back_end: str, is_additive: bool) -> None:
    """Seventy tokens at 1,000 nats each are 70,000 nats, where float16 ends at 65,504."""
    model = make_model("alibi", back_end, torch.float16, alibi_beta=1000.0, alibi_slope_kind="uniform")
    mask = torch.ones(80, 80, dtype=torch.bool).tril(-70)[None, None]
    mask[..., 0] |= ~mask.any(-1)
    mask = mask.repeat(2, 1, 1, 1)
    tokens = torch.randint(model.config.vocab_size, (2, 80), generator=torch.Generator().manual_seed(0))
    others = tokens.clone()
    others[:, 20:70] = (others[:, 20:70] + 1) % model.config.vocab_size
    # No key that the last queries see, in any layer, has seen the changed tokens.
    additive = torch.where(mask, 0.0, torch.finfo(torch.float16).min).half()
    outputs = [
        model(ids, attention_mask=additive if is_additive else mask, use_cache=False).logits[:, 75:]
        for ids in (tokens, others)
    ]
    assert outputs[0].isfinite().all()
    assert torch.equal(*outputs)
