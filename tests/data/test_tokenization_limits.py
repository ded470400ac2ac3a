"""Tokenising stops where enough tokens are asked for, and its bar moves from the first documents on."""

import datasets
import pytest
from datasets import Dataset

from modeling_alibi_gpt.data import tokenization
from modeling_alibi_gpt.data.tokenization import token_stream, tokenize_documents, train_tokenizer


TEXTS = ["the first document, of a line", "", "\u4e16\u754c caf\u00e9 \U0001f600\n\nand more\n", "the last one"]


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(Dataset.from_dict({"text": TEXTS}), 280)


def test_no_piece_is_encoded_beyond_the_tokens_that_are_asked_for(tokenizer, monkeypatch):
    """Neither later documents nor, in a long one, later pieces; the tokens are the first of all of them."""
    monkeypatch.setattr(tokenization, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(tokenization, "PIECES_PER_CALL", 2)
    documents = Dataset.from_dict({"text": ["short", "line of a book\n" * 1000, *TEXTS]})
    whole = [token for ids in tokenize_documents(documents, tokenizer)["input_ids"] for token in ids]
    pieces, num_characters = tokenization._pieces, 0

    def count(text):
        nonlocal num_characters
        for start, piece in pieces(text):
            num_characters += len(piece)
            yield start, piece

    monkeypatch.setattr(tokenization, "_pieces", count)
    for max_tokens in (1, 2, len(tokenizer("short")["input_ids"]), 50, 200):
        num_characters = 0
        found = [token for ids in tokenize_documents(documents, tokenizer, max_tokens)["input_ids"] for token in ids]
        assert found[:max_tokens] == whole[:max_tokens]
        assert max_tokens <= num_characters <= 15 * max_tokens + 2 * 115, "a token is in a line, a piece ends with one"
        num_characters = 0
        stream = token_stream(documents, tokenizer, max_tokens)
        assert stream.input_ids[1:].tolist() == whole[:max_tokens]
        assert num_characters <= 15 * max_tokens + 2 * 115
    assert (
        tokenize_documents(documents, tokenizer, 10**6)["input_ids"][:]
        == tokenize_documents(documents, tokenizer)["input_ids"][:]
    )


def test_the_bar_moves_within_a_few_documents(tokenizer, monkeypatch):
    """By characters of text, or by tokens where they are limited, and up to its end."""
    bars = []

    class Bar:
        def __init__(self, *, total, **_):
            self.total, self.steps = total, []
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, step):
            self.steps.append(step)

    monkeypatch.setattr(tokenization, "tqdm", Bar)
    documents = Dataset.from_dict({"text": TEXTS})
    tokenize_documents(documents, tokenizer)
    tokenize_documents(documents, tokenizer, 20)
    assert bars[0].total == sum(bars[0].steps) == sum(map(len, TEXTS))
    assert len(bars[0].steps) == len(TEXTS)
    assert bars[1].total == 20 <= sum(bars[1].steps)
