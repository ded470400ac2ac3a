"""Continuous batching: ``generate_batch`` gives the tokens of ``generate``, whatever shares a batch or a block."""

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import continuous_api

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM


# Pages smaller than most prompts, batches smaller than the longest: prefill comes in chunks, prefixes are shared.
BATCHING = {"page_size": 16, "num_blocks": 64, "max_batch_tokens": 24}
GENERATION = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=60, pad_token_id=0)


def _model(**fields) -> AlibiGPTForCausalLM:
    torch.manual_seed(0)
    settings = {
        "vocab_size": 61,
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "initializer_range": 0.3,
        "eos_token_id": 60,
        "pad_token_id": 0,
    }
    return AlibiGPTForCausalLM(AlibiGPTConfig(**{**settings, **fields})).eval()


def _prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    draw = [torch.randint(1, 60, (length,), generator=generator).tolist() for length in (3, 40, 17, 70)]
    return [*draw[:3], draw[3] + [1, 2, 3], draw[3] + [4, 5]]


MODELS = {
    "alibi": {},
    "trained_slopes": {"alibi_trainable": "slopes"},
    "dynamic_scaling": {"alibi_scaling": {"type": "dynamic_linear"}, "train_context_length": 16},
    "rope": {"position_method": "rope"},
    "learned": {"position_method": "learned"},
    "sinusoidal": {"position_method": "sinusoidal"},
    "rope_dynamic_ntk": {
        "position_method": "rope",
        "rope_extension": {"type": "dynamic_ntk"},
        "train_context_length": 16,
    },
    "t5": {"position_method": "t5"},
    "shared_offset": {"position_method": "shared_offset", "train_context_length": 32},
    "kerple": {"position_method": "kerple"},
    "fire": {"position_method": "fire", "train_context_length": 32},
    "sandwich": {"position_method": "sandwich"},
    "none": {"position_method": "none"},
}


@pytest.mark.parametrize("back_end", ["sdpa", "paged|eager"])
@pytest.mark.parametrize("name", MODELS)
def test_batches_give_the_tokens_of_generate(name: str, back_end: str) -> None:
    model, prompts = _model(**MODELS[name]), _prompts()
    alone = [
        model.generate(torch.tensor([prompt]), generation_config=GENERATION)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    assert len({tuple(tokens) for tokens in alone}) > 1
    model.set_attn_implementation(back_end)
    outputs = model.generate_batch(
        prompts,
        generation_config=GENERATION,
        continuous_batching_config=ContinuousBatchingConfig(**BATCHING),
    )
    assert [output.generated_tokens for output in outputs.values()] == alone


@pytest.mark.parametrize("back_end", ["sdpa", "paged|eager"])
def test_a_prompt_so_long_that_far_keys_stop_counting(back_end: str) -> None:
    """In float32 a key stops counting about 60 nats down, here after 250 tokens; sdpa then has a second mask."""
    model = _model()
    prompt = torch.randint(1, 60, (1, 400), generator=torch.Generator().manual_seed(2))
    alone = model.generate(prompt, generation_config=GENERATION)[0, prompt.shape[1] :].tolist()
    model.set_attn_implementation(back_end)
    outputs = model.generate_batch(
        prompt.tolist(),
        generation_config=GENERATION,
        continuous_batching_config=ContinuousBatchingConfig(**BATCHING),
    )
    assert [output.generated_tokens for output in outputs.values()] == [alone]


def test_it_would_notice_a_missing_bias() -> None:
    """The control: without the bias, or with slopes twice as steep, other tokens come out."""
    prompts = _prompts()
    tokens = []
    for fields in ({}, {"position_method": "none"}, {"alibi_beta": 2.0}):
        model = _model(**fields)
        tokens.append([model.generate(torch.tensor([p]), generation_config=GENERATION).tolist() for p in prompts])
    assert tokens[0] != tokens[1] and tokens[0] != tokens[2]


@pytest.mark.parametrize("version", [2, 3])
def test_flash_attention_that_is_installed_is_not_switched_to(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in (2, 3):
        is_available = lambda *_, found=other == version, **__: found  # noqa: E731
        monkeypatch.setattr(continuous_api, f"is_flash_attn_{other}_available", is_available)
    model, prompts = _model(), _prompts()
    assert model.config._attn_implementation == "sdpa"
    config = ContinuousBatchingConfig(**BATCHING)
    manager = model.init_continuous_batching(GENERATION, config)
    assert not manager.continuous_batching_config.auto_switch_to_flash and config.auto_switch_to_flash
    assert "flash" not in model.config._attn_implementation
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="continuous batching needs .*'sdpa' or 'eager', got 'flash_attention_2'"):
        model.generate_batch(prompts, generation_config=GENERATION, continuous_batching_config=config)
