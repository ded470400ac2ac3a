"""Text that a tokenizer does not know is counted and named, and a tokenizer that loses nothing causes no warning."""

import logging

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_alibi_gpt.evaluation.measurement import MeasurementConfig, load_text


def word_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(("[UNK]", "</s>", *words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="</s>")


def test_lost_text_is_counted(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "words.txt").write_text("plan the bias of the window\n", encoding="utf-8")
    config = MeasurementConfig(source=f"text:{tmp_path / 'words.txt'}", split="all")
    with caplog.at_level(logging.WARNING):
        load_text(config, word_tokenizer("plan", "the", "bias", "of", "window"))
        assert not caplog.records
        load_text(config, word_tokenizer("plan", "the", "bias"))
    [record] = caplog.records
    assert record.getMessage().startswith("2 of 8 tokens are [UNK]: text that the tokenizer does not know.")


def test_an_unknown_token_that_ends_documents_is_no_lost_text(
    source: str, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    named = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    named.unk_token = tokenizer.eos_token
    with caplog.at_level(logging.WARNING):
        text = load_text(MeasurementConfig(source=source, split="all"), named)
    assert named.unk_token_id in text.stream.input_ids.tolist() and not caplog.records
