"""Ways to generate that read more of the model than its logits."""

import pytest
import torch
from transformers import DynamicCache

from tests.support.exact_cases import BATCHES, make_model
from tests.test_modeling_exact import TOLERANCE


@pytest.mark.parametrize("case", ["alibi", "alibi_trained_slopes", "t5", "rope"])
def test_drafts_of_the_first_layers_change_no_token(case: str) -> None:
    model, prompt = make_model(case), BATCHES["whole"].token_ids[:1]
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 12, "do_sample": False}
    drafted = model.generate(prompt, assistant_early_exit=1, **options)
    assert torch.equal(drafted, model.generate(prompt, **options))
    assert model.config.num_hidden_layers == 2


@pytest.mark.parametrize("back_end", ["eager", "sdpa"])
@pytest.mark.parametrize("case", ["alibi", "alibi_dynamic_ntk", "t5", "rope"])
@torch.no_grad()
def test_a_tree_of_drafts_is_scored_as_its_branches(case: str, back_end: str) -> None:
    """Two branches of three tokens behind a cached prompt, in one call with a 4D mask and positions."""
    model, token_ids = make_model(case, back_end), BATCHES["whole"].token_ids
    prompt, branches = token_ids[:1, :10], token_ids[1:, :3]
    cache = DynamicCache(config=model.config)
    model(prompt, past_key_values=cache)
    sees = torch.block_diag(*[torch.ones(3, 3).tril()] * 2)
    mask = torch.cat([torch.ones(6, 10), sees], dim=1).bool()[None, None]
    position_ids = torch.arange(10, 13).repeat(2)[None]
    tree = model(
        branches.reshape(1, 6), attention_mask=mask, position_ids=position_ids, past_key_values=cache
    ).logits.view(2, 3, -1)
    alone = model(torch.cat([prompt.expand(2, -1), branches], dim=1)).logits[:, 10:]
    torch.testing.assert_close(tree, alone, rtol=0.0, atol=TOLERANCE)
