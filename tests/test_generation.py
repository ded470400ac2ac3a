"""Ways to generate that read more of the model than its logits."""

import pytest
import torch

from tests.support.exact_cases import BATCHES, make_model


@pytest.mark.parametrize("case", ["alibi", "alibi_trained_slopes", "t5", "rope"])
def test_drafts_of_the_first_layers_change_no_token(case: str) -> None:
    model, prompt = make_model(case), BATCHES["whole"].token_ids[:1]
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 12, "do_sample": False}
    drafted = model.generate(prompt, assistant_early_exit=1, **options)
    assert torch.equal(drafted, model.generate(prompt, **options))
    assert model.config.num_hidden_layers == 2
