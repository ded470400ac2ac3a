"""A small AlibiGPT with its tokenizer, for the GGUF tests."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer
from tests.support.gguf_cases import SIZES


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    text = " ".join(random.Random(0).choices(["plan", "window", "slope", "bias"], k=200))
    return train_tokenizer(Dataset.from_dict({"name": ["words"], "text": [text]}), 265)


@pytest.fixture
def save(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., AlibiGPTForCausalLM]:
    """Saves a model with distinct weights and five more embeddings than tokens to ``tmp_path / "model"``."""

    def make(**fields) -> AlibiGPTForCausalLM:
        torch.manual_seed(0)
        model = AlibiGPTForCausalLM(AlibiGPTConfig(vocab_size=len(tokenizer) + 5, **{**SIZES, **fields}))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return model

    return make
