"""PEFT: LoRA on every linear layer can be trained, saved, loaded and merged; virtual tokens take positions."""

import pytest
import torch
from torch import Tensor


pytest.importorskip("peft")
from peft import (  # noqa: E402
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)

from modeling_alibi_gpt import AlibiWindowCache  # noqa: E402
from modeling_alibi_gpt.cache_argument import CACHE_NAME  # noqa: E402


pytestmark = pytest.mark.integrations
# Merging adds B @ A to a weight once instead of to every product: the promise for float32 logits of order one.
TOLERANCE = 1e-5


def draw_tokens(model, length: int = 20) -> Tensor:
    return torch.randint(1, model.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(1))


def train(model, num_steps: int = 2) -> list[float]:
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.05)
    tokens, losses = draw_tokens(model), []
    for _ in range(num_steps):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def logits(model) -> Tensor:
    return model.eval()(input_ids=draw_tokens(model)).logits


@pytest.mark.parametrize("trainable", ["none", "slopes"])
def test_lora_trains_saves_loads_and_merges(make_model, tmp_path, trainable: str) -> None:
    model = make_model(alibi_trainable=trainable)
    plain = logits(model)
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, target_modules="all-linear")
    adapted = get_peft_model(model, config)
    targets = {name.split(".")[-1] for name in adapted.base_model.targeted_module_names}
    assert targets == {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}
    first, second = train(adapted)
    assert second < first
    expected = logits(adapted)
    assert (expected - plain).abs().max() > 100 * TOLERANCE

    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(alibi_trainable=trainable), tmp_path)
    assert torch.equal(logits(loaded), expected)
    merged = loaded.merge_and_unload()
    assert type(merged) is type(make_model())
    torch.testing.assert_close(logits(merged), expected, rtol=0.0, atol=TOLERANCE)


def test_slopes_train_beside_lora(make_model, tmp_path) -> None:
    """``modules_to_save`` takes the position method as a whole: its slopes train and travel with the adapter."""
    model = make_model(alibi_trainable="slopes")
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=4, target_modules="all-linear", modules_to_save=["position_method"]
    )
    adapted = get_peft_model(model, config)
    before = model.model.position_method.layer_slopes(0).detach().clone()
    train(adapted)
    after = model.model.position_method.layer_slopes(0)
    assert not torch.equal(before, after)
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(alibi_trainable="slopes"), tmp_path)
    assert torch.equal(logits(loaded), logits(adapted))
    merged = loaded.merge_and_unload()
    assert torch.equal(merged.model.position_method.layer_slopes(0), after)


@pytest.mark.parametrize("qk_norm", [False, True])
@torch.no_grad()
def test_windows_of_an_adapted_model_are_those_of_the_merged_one(make_model, qk_norm: bool) -> None:
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(make_model(qk_norm=qk_norm, attn_implementation="alibi_banded"), config).eval()
    tokens = draw_tokens(adapted)

    def windows(model) -> list[int]:
        make = AlibiWindowCache.from_qk_norm if qk_norm else AlibiWindowCache.from_text
        cache = make(model) if qk_norm else make(model, tokens)
        return [group.window for layer in cache.layers for group in layer.groups]

    found = windows(adapted)
    generated = adapted.generate(input_ids=tokens, past_key_values=AlibiWindowCache([[64] * 3] * 2), max_new_tokens=4)
    assert generated.shape == (2, 24)
    assert found == windows(adapted.merge_and_unload())


@pytest.mark.parametrize("back_end", ["eager", "sdpa"])
def test_prompt_tuning_is_the_prompt_in_front(make_model, back_end: str) -> None:
    """Virtual tokens that embed real ones give the logits that those tokens give in front of the text."""
    model, prompt = make_model(), torch.tensor([5, 9, 2, 60])
    model.set_attn_implementation(back_end)
    tokens = draw_tokens(model)
    with torch.no_grad():
        expected = model(torch.cat((prompt.expand(2, -1), tokens), dim=1)).logits
    tuned = get_peft_model(model, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=len(prompt)))
    with torch.no_grad():
        tuned.prompt_encoder["default"].embedding.weight.copy_(model.model.embed_tokens(prompt))
    torch.testing.assert_close(logits(tuned), expected, rtol=0.0, atol=TOLERANCE)
    first, second = train(tuned)
    assert second < first


@pytest.mark.parametrize("padded", [False, True])
def test_prefix_tuning_is_a_cache_in_front(make_model, padded: bool) -> None:
    """A prefix of the keys and values of real tokens gives the logits that those tokens give in front of the text."""
    model, prompt = make_model(), torch.tensor([[5, 9, 2, 60]])
    tokens = draw_tokens(model)
    visible = torch.ones_like(tokens)
    if padded:
        visible[0, :3] = 0
    with torch.no_grad():
        cache = model(prompt, use_cache=True)[CACHE_NAME]
        whole = torch.cat((torch.ones(2, 4, dtype=torch.long), visible), dim=1)
        expected = model(torch.cat((prompt.expand(2, -1), tokens), dim=1), attention_mask=whole).logits[:, 4:]
    tuned = get_peft_model(model, PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4))
    # PEFT keeps a prefix as (tokens, layers x (keys, values) x heads x head size).
    prefix = torch.stack([states[0] for layer in cache.layers for states in (layer.keys, layer.values)])
    with torch.no_grad():
        tuned.prompt_encoder["default"].embedding.weight.copy_(prefix.permute(2, 0, 1, 3).reshape(4, -1))
        measured = tuned.eval()(input_ids=tokens, attention_mask=visible).logits
    torch.testing.assert_close(measured[visible.bool()], expected[visible.bool()], rtol=0.0, atol=TOLERANCE)
