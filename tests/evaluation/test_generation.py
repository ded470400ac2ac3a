"""Text from a checkpoint: what a model cannot do is said in words."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from modeling_alibi_gpt.data.corpora import load_documents
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer
from modeling_alibi_gpt.evaluation.generation import GenerateConfig, generate_text


def test_beyond_a_table_of_positions_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one line of words after another\n" * 50, encoding="utf-8")
    folder = tmp_path / "gpt2"
    train_tokenizer(load_documents(f"text:{tmp_path}/text.txt", "all"), 300).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=48, n_layer=1, n_head=3, n_positions=16, eos_token_id=299)
    GPT2LMHeadModel(config).save_pretrained(folder)
    assert generate_text(GenerateConfig(model=str(folder), prompt="one", max_new_tokens=4))["text"].startswith("one")
    with pytest.raises(ValueError, match="position table of 16 tokens: lower max_new_tokens"):
        generate_text(GenerateConfig(model=str(folder), prompt="one", max_new_tokens=64, do_sample=False))
