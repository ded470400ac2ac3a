"""Checkpoint folders and a text for evaluation tests: tiny random models with their own tokenizer."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import MptConfig, MptForCausalLM, PreTrainedModel

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer


TRAIN_LENGTH = 16


@pytest.fixture(scope="session")
def text() -> str:
    words = ["plan", "window", "token", "slope", "bias", "naïve", "→", "score"]
    return " ".join(random.Random(0).choices(words, k=400)) + "\n"


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory, text: str) -> str:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(text, encoding="utf-8")
    return f"text:{path}"


@pytest.fixture(scope="session")
def tokenizer(text: str):
    return train_tokenizer(Dataset.from_dict({"name": ["words"], "text": [text]}), 264)


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Callable[[str], str]:
    """Returns the checkpoint folder of a position method, or of ``mpt``; the same folder on every call."""
    root: Path = tmp_path_factory.mktemp("checkpoints")

    def make(method: str) -> str:
        folder = root / method
        if not folder.exists():
            torch.manual_seed(0)
            _make_model(method, len(tokenizer), tokenizer.eos_token_id).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return str(folder)

    return make


def _make_model(method: str, vocab_size: int, eos_token_id: int) -> PreTrainedModel:
    if method == "mpt":
        return MptForCausalLM(
            MptConfig(vocab_size=vocab_size, d_model=16, n_heads=2, n_layers=1, max_seq_len=TRAIN_LENGTH)
        )
    config = AlibiGPTConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        train_context_length=TRAIN_LENGTH,
        position_method=method,
        initializer_range=0.3,
        eos_token_id=eos_token_id,
    )
    return AlibiGPTForCausalLM(config)
