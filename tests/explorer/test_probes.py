"""What the explorer reads from a model, against the model itself and against definitions."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.data.corpora import load_documents
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer
from modeling_alibi_gpt.explorer import probes


NUM_TOKENS = 37


def tiny_model(**fields: Any) -> AlibiGPTForCausalLM:
    torch.manual_seed(0)
    config = AlibiGPTConfig(
        vocab_size=300, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.4, **fields
    )
    return AlibiGPTForCausalLM(config).eval()


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(0, 300, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("naïve lines of words after another\n" * 50, encoding="utf-8")
    return train_tokenizer(load_documents(f"text:{path}", "all"), 300)


@pytest.mark.parametrize(
    "fields",
    [
        {"alibi_beta": 0.3},
        {"num_key_value_heads": 2, "alibi_bias_inside_scaling": True},
        {"alibi_scaling": {"type": "dynamic_linear"}, "train_context_length": 8},
        {"position_method": "rope"},
        {"position_method": "t5"},
        {"position_method": "none"},
    ],
)
def test_attention_with_the_bias_is_that_of_the_model(fields: dict[str, Any], input_ids: torch.Tensor) -> None:
    model = tiny_model(**fields)
    model.set_attn_implementation("eager")
    expected = model(input_ids, output_attentions=True).attentions
    for layer in range(2):
        for head in range(4):
            attention = probes.head_attention(model, input_ids, layer, head)
            torch.testing.assert_close(attention.with_bias, expected[layer][0, head], rtol=1e-5, atol=1e-6)


def test_attention_without_the_bias_differs_by_its_exponential(input_ids: torch.Tensor) -> None:
    model = tiny_model(alibi_beta=0.3)
    slopes = model.config.base_alibi_slopes()
    positions = torch.arange(NUM_TOKENS)
    distance = (positions[:, None] - positions).float()
    for head in range(4):
        attention = probes.head_attention(model, input_ids, 1, head)
        rebuilt = attention.with_bias.double() * (slopes[head] * distance).double().exp()
        rebuilt /= rebuilt.sum(-1, keepdim=True)
        torch.testing.assert_close(attention.without_bias.double(), rebuilt, rtol=1e-4, atol=1e-7)
        assert probes.mean_distance(attention.with_bias) < probes.mean_distance(attention.without_bias)


def test_a_layer_or_head_that_is_not_there_is_refused(input_ids: torch.Tensor) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="layer must be from 0 to 1, got 2"):
        probes.head_attention(model, input_ids, 2, 0)
    with pytest.raises(ValueError, match="head must be from 0 to 3, got -1"):
        probes.head_attention(model, input_ids, 0, -1)


def test_losses_add_up_to_that_of_the_model(input_ids: torch.Tensor) -> None:
    model = tiny_model()
    nats = probes.position_nats(model, input_ids)
    assert nats.shape == (NUM_TOKENS - 1,)
    assert nats.mean().item() == pytest.approx(model(input_ids, labels=input_ids).loss.item(), rel=1e-5)
    shorter = probes.position_nats(model, input_ids[:, :10])
    torch.testing.assert_close(nats[:9], shorter, rtol=1e-5, atol=1e-5)


def test_bins_double_and_hold_every_position_once() -> None:
    nats = torch.arange(36, dtype=torch.float32)
    bins = probes.bin_positions(nats)
    assert [edge[:2] for edge in bins] == [(0, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 36)]
    assert [mean for _, _, mean in bins] == [0.0, 1.0, 2.5, 5.5, 11.5, 23.5, 33.5]
    assert [edge[:2] for edge in probes.bin_positions(nats[:1])] == [(0, 1)]
    assert [edge[:2] for edge in probes.bin_positions(nats[:4])] == [(0, 1), (1, 2), (2, 4)]


def test_next_tokens_are_those_of_a_model_loaded_with_that_beta(
    tmp_path: Path, input_ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase
) -> None:
    tiny_model().save_pretrained(tmp_path)
    model = AlibiGPTForCausalLM.from_pretrained(tmp_path)
    before = model(input_ids).logits
    tokens = probes.next_tokens(model, tokenizer, input_ids, 0.01, num_tokens=5)
    changed = AlibiGPTForCausalLM.from_pretrained(tmp_path, alibi_beta=0.01)(input_ids).logits[0, -1].softmax(-1)
    expected = changed.topk(5)
    assert [token.changed_probability for token in tokens] == pytest.approx(expected.values.tolist(), rel=1e-4)
    assert [token.text for token in tokens] == [tokenizer.decode([index]) for index in expected.indices.tolist()]
    own = before[0, -1].softmax(-1)[expected.indices]
    assert [token.probability for token in tokens] == pytest.approx(own.tolist(), rel=1e-4)
    assert (own - expected.values).abs().max() > 0.01
    assert model.config.alibi_beta == 1.0 and torch.equal(model(input_ids).logits, before)


@pytest.mark.parametrize(
    ("fields", "beta", "message"),
    [
        ({"position_method": "rope"}, 0.5, "needs position_method alibi .* got another position method"),
        ({"alibi_trainable": "slopes"}, 0.5, "alibi_trainable none, got slopes"),
        ({}, -1.0, "beta must be a finite number above 0, got -1.0"),
        ({}, math.inf, "beta must be a finite number above 0, got inf"),
    ],
)
def test_a_beta_that_cannot_be_tried_leaves_the_model_alone(
    fields: dict[str, Any], beta: float, message: str, input_ids: torch.Tensor
) -> None:
    model = tiny_model(**fields)
    before = model(input_ids).logits
    with pytest.raises(ValueError, match=message), probes.trying_beta(model, beta):
        raise AssertionError("nothing runs with such a beta")
    assert model.config.alibi_beta == 1.0 and torch.equal(model(input_ids).logits, before)


def test_pooled_attention_is_the_mean_over_queries_of_sums_over_keys() -> None:
    weights = torch.tensor([[1.0, 0, 0], [0.25, 0.75, 0], [0.5, 0.25, 0.25]])
    torch.testing.assert_close(
        probes.pool_attention(weights, max_cells=2), torch.tensor([[1.0, 0.0], [0.75, 0.25]]), rtol=0, atol=0
    )
    assert torch.equal(probes.pool_attention(weights), weights)


def test_mean_distance_counts_tokens_back() -> None:
    assert probes.mean_distance(torch.eye(4)) == 0.0
    assert probes.mean_distance(torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0.5, 0, 0.5]])) == pytest.approx(2 / 3)


def test_bits_per_byte_count_the_bytes_that_were_predicted(tokenizer: PreTrainedTokenizerBase) -> None:
    input_ids = probes.encode_text(tokenizer, "naïve lines")
    num_bytes = len(tokenizer.decode(input_ids[0, 1:].tolist()).encode())
    nats = torch.full((input_ids.shape[1] - 1,), math.log(2))
    assert probes.bits_per_byte(nats, tokenizer, input_ids) == pytest.approx(len(nats) / num_bytes)


def test_a_text_without_a_prediction_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="at least 2 tokens, got 0"):
        probes.encode_text(tokenizer, "")
