"""Good inputs for the cases to spoil."""

import datasets
import pytest
import torch
from datasets import Dataset
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MptConfig,
    MptForCausalLM,
)

import modeling_alibi_gpt.checkpoints.convert.conversion
import modeling_alibi_gpt.evaluation.generation
import modeling_alibi_gpt.experiments.compare
import modeling_alibi_gpt.experiments.sweep
import modeling_alibi_gpt.report.report  # noqa: F401  commands import late, which is not what is timed
from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer
from tests.bad_input.refusals import Inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("inputs")
    text = " ".join(f"word{number % 37}" for number in range(3000)) + "\n"
    (folder / "words.txt").write_text(text, encoding="utf-8")
    tokenizer = train_tokenizer(Dataset.from_dict({"name": ["words"], "text": [text]}), 264)
    torch.manual_seed(0)
    config = AlibiGPTConfig(
        vocab_size=264, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, train_context_length=16
    )
    model = AlibiGPTForCausalLM(config)
    for name, options in (("whole", {}), ("sharded", {"max_shard_size": 10_000})):
        model.save_pretrained(folder / name, **options)
        tokenizer.save_pretrained(folder / name)
    sizes = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    families = {
        "bloom": BloomForCausalLM(BloomConfig(**sizes, hidden_size=16, n_layer=2, n_head=2)),
        "mpt": MptForCausalLM(MptConfig(**sizes, d_model=16, n_layers=2, n_heads=2)),
        "gpt2": GPT2LMHeadModel(GPT2Config(**sizes, n_embd=16, n_layer=2, n_head=2, n_positions=16)),
    }
    for name, original in families.items():
        original.save_pretrained(folder / name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "datasets-cache"))
        yield Inputs(
            source=f"text:{folder / 'words.txt'}",
            checkpoint=folder / "whole",
            sharded=folder / "sharded",
            families={name: folder / name for name in families},
        )
