"""Positions that float32 cannot tell apart."""

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
