"""What the integrations work on: a small model with peaked attention, and a tokenizer learnt from a made-up text."""

import random
from collections.abc import Callable

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer


WORDS = ("plan", "window", "token", "slope", "bias", "mask", "head", "score", "query", "key", "value", "position")


@pytest.fixture(scope="session")
def text() -> str:
    return " ".join(random.Random(0).choices(WORDS, k=400))


@pytest.fixture(scope="session")
def tokenizer(text: str) -> PreTrainedTokenizerFast:
    return train_tokenizer(Dataset.from_dict({"name": ["words"], "text": [text]}), 270)


@pytest.fixture(scope="session")
def make_config(tokenizer: PreTrainedTokenizerFast) -> Callable[..., AlibiGPTConfig]:
    def make(**fields) -> AlibiGPTConfig:
        settings = {
            "vocab_size": len(tokenizer),
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "train_context_length": 32,
            "initializer_range": 0.2,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        return AlibiGPTConfig(**{**settings, **fields})

    return make


@pytest.fixture(scope="session")
def make_model(make_config: Callable[..., AlibiGPTConfig]) -> Callable[..., AlibiGPTForCausalLM]:
    """A causal model, the same one for the same fields."""

    def make(**fields) -> AlibiGPTForCausalLM:
        torch.manual_seed(0)
        return AlibiGPTForCausalLM(make_config(**fields)).eval()

    return make
