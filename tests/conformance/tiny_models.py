"""Small checkpoints of all heads of a model, where transformers' pipeline tests look for them."""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)

import modeling_alibi_gpt  # noqa: F401  registers AlibiGPT with the Auto classes


HEADS = (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte; like the model it has no longest length."""
    vocabulary = ["<pad>", "<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def save_tiny_models(folder: Path, model_type: str) -> None:
    """Save every head with its tokenizer, and the list by which the tests find them."""
    tokenizer = make_tokenizer()
    config = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    summary = {}
    for head in HEADS:
        model = head.from_config(config)
        name = type(model).__name__
        destination = folder / model_type / name
        model.save_pretrained(destination)
        tokenizer.save_pretrained(destination)
        summary[name] = {"tokenizer_classes": [type(tokenizer).__name__], "processor_classes": []}
    (folder / "reports").mkdir()
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary), encoding="utf-8")


if __name__ == "__main__":
    save_tiny_models(Path(sys.argv[1]), sys.argv[2])
