"""The cache by the name of either release of transformers, in calls of ours and of `generate`."""

import warnings

import pytest
import torch
from transformers import DynamicCache, GPT2LMHeadModel, PreTrainedModel

from modeling_alibi_gpt import (
    AlibiGPTConfig,
    AlibiGPTForCausalLM,
    AlibiGPTForQuestionAnswering,
    AlibiGPTForSequenceClassification,
    AlibiGPTForTokenClassification,
    AlibiGPTModel,
)
from modeling_alibi_gpt.cache_argument import CACHE_NAME, cache_name


MODELS = [
    AlibiGPTModel,
    AlibiGPTForCausalLM,
    AlibiGPTForQuestionAnswering,
    AlibiGPTForSequenceClassification,
    AlibiGPTForTokenClassification,
]


def make_model(model_class: type[PreTrainedModel] = AlibiGPTForCausalLM) -> PreTrainedModel:
    """Weights so large that a token of the past changes the next one."""
    torch.manual_seed(0)
    return model_class(
        AlibiGPTConfig(
            vocab_size=61,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=6,
            initializer_range=0.3,
            pad_token_id=0,
        )
    ).eval()


def draw_tokens(batch_size: int, length: int) -> torch.Tensor:
    return torch.randint(1, 61, (batch_size, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"prefill_chunk_size": 5}], ids=str)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_generate_gives_the_tokens_it_gives_without_a_cache(options: dict, num_beams: int) -> None:
    model, prompt = make_model(), draw_tokens(2, 12)
    search = {"max_new_tokens": 20, "num_beams": num_beams, "do_sample": False}
    expected = model.generate(prompt, use_cache=False, **search)
    assert torch.equal(model.generate(prompt, **options, **search), expected)


@pytest.mark.parametrize("model_class", MODELS)
@torch.no_grad()
def test_both_names_read_the_same_cache(model_class: type[PreTrainedModel]) -> None:
    model, tokens = make_model(model_class), draw_tokens(2, 12)
    outputs = []
    for name in ("cache", "past_key_values"):
        cache = DynamicCache(config=model.config)
        model(tokens[:, :8], **{name: cache})
        outputs.append(model(tokens[:, 8:], **{name: cache})[0])
        assert cache.get_seq_length() == 12
    assert torch.equal(*outputs)


def test_a_model_is_asked_by_which_name_it_takes_a_cache() -> None:
    class OldNames(torch.nn.Module):
        def forward(self, input_ids, past_key_values=None, **kwargs): ...

    class NewNames(torch.nn.Module):
        def forward(self, input_ids, cache=None, **kwargs): ...

    assert (cache_name(OldNames()), cache_name(NewNames())) == ("past_key_values", "cache")
    # Those of transformers take the name of the installed release.
    assert cache_name(GPT2LMHeadModel) == CACHE_NAME


@pytest.mark.skipif(CACHE_NAME != "cache", reason="transformers has not renamed past_key_values yet")
def test_the_old_name_warns_as_with_models_of_transformers() -> None:
    with pytest.warns(FutureWarning, match="`past_key_values` is deprecated"):
        make_model()(draw_tokens(1, 4), past_key_values=DynamicCache())


@pytest.mark.parametrize("model_class", [AlibiGPTModel, AlibiGPTForCausalLM, AlibiGPTForTokenClassification])
def test_two_caches_are_refused(model_class: type[PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="got both cache and past_key_values"):
        make_model(model_class)(draw_tokens(1, 4), cache=DynamicCache(), past_key_values=DynamicCache())


@pytest.mark.parametrize("model_class", MODELS)
def test_our_own_calls_warn_of_no_old_name(model_class: type[PreTrainedModel]) -> None:
    model, tokens = make_model(model_class), draw_tokens(1, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model(tokens, attention_mask=torch.ones_like(tokens), use_cache=True)
        if model.can_generate():
            model.generate(tokens, max_new_tokens=3)


def test_a_layer_that_is_recomputed_writes_no_cache() -> None:
    """It would write the same keys a second time."""
    model, tokens, cache = make_model().train(), draw_tokens(1, 8), DynamicCache()
    model.gradient_checkpointing_enable()
    model(tokens, labels=tokens, **{CACHE_NAME: cache}).loss.backward()
    assert cache.get_seq_length() == 0


def test_what_moves_or_gathers_outputs_leaves_the_cache_alone() -> None:
    model = make_model()
    assert CACHE_NAME in model._skip_keys_device_placement
    assert CACHE_NAME in model.config.keys_to_ignore_at_inference
    assert CACHE_NAME in model(draw_tokens(1, 4), use_cache=True)
