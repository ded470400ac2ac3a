"""Tokenizing stops where enough tokens are asked for, and its bar moves from the first documents on."""

import datasets
import pytest
from datasets import Dataset

from modeling_alibi_gpt.data import documents as documents_module
from modeling_alibi_gpt.data import packing, tokenization
from modeling_alibi_gpt.data.packing import pack_documents
from modeling_alibi_gpt.data.tokenization import token_stream
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer


TEXTS = ["the first document, of a line", "", "\u4e16\u754c caf\u00e9 \U0001f600\n\nand more\n", "the last one"]


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(Dataset.from_dict({"text": TEXTS}), 280)


def test_no_piece_is_encoded_beyond_the_tokens_that_are_asked_for(tokenizer, monkeypatch):
    """Neither later documents nor, in a long one, later pieces; the tokens are the first of all of them."""
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(tokenization, "CALL_CHARACTERS", 200)
    documents = Dataset.from_dict({"text": ["short", "line of a book\n" * 1000, *TEXTS]})
    whole = token_stream(documents, tokenizer).input_ids[1:].tolist()
    pieces, num_characters = documents_module.pieces_of_row, 0

    def count(text):
        nonlocal num_characters
        for start, piece in pieces(text):
            num_characters += len(piece)
            yield start, piece

    monkeypatch.setattr(tokenization, "pieces_of_row", count)
    for max_tokens in (3, 50, 200, 10**6):
        num_characters = 0
        blocks = pack_documents(documents, tokenizer, 3, max_tokens=max_tokens)
        assert [token for ids in blocks["input_ids"] for token in ids] == whole[:max_tokens]
        assert num_characters <= 15 * max_tokens + 2 * 215, "a token is in a line, a piece ends with one"
        num_characters = 0
        stream = token_stream(documents, tokenizer, max_tokens)
        assert stream.input_ids[1:].tolist() == whole[:max_tokens]
        assert num_characters <= 15 * max_tokens + 2 * 215
    assert num_characters > 15_000, "all of it"


def test_the_bar_moves_within_a_few_documents(tokenizer, monkeypatch):
    """By bytes of text, and up to its end."""
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

    monkeypatch.setattr(packing, "tqdm", Bar)
    pack_documents(Dataset.from_dict({"text": TEXTS}), tokenizer, 3)
    assert bars[0].total == sum(bars[0].steps) == sum(len(text.encode()) for text in TEXTS)
    assert len(bars[0].steps) == len(TEXTS)
