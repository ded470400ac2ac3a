"""Packing that drops nothing, and batches that predict what they should and nothing else."""

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset

from modeling_alibi_gpt.data import documents as documents_module
from modeling_alibi_gpt.data import packing, tokenization
from modeling_alibi_gpt.data.corpora import load_documents
from modeling_alibi_gpt.data.packing import PackedCollator, blocks_fingerprint, pack_documents
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


def pack_lengths(lengths, length_tokens, *, isolate_documents=False, max_tokens=None):
    """Blocks of documents that count on from 1, so that every token is another one."""
    starts = [1 + sum(lengths[:index]) for index in range(len(lengths))]
    documents = [
        np.arange(start, start + length, dtype=np.int32) for start, length in zip(starts, lengths, strict=True)
    ]
    tokens = packing.first_tokens(((ids, True) for ids in documents), max_tokens)
    return list(packing.packed_blocks(tokens, length_tokens, isolate_documents=isolate_documents))


def column(blocks, name="input_ids"):
    return [block[name].tolist() for block in blocks]


def joined(rows):
    return [token for row in rows for token in row]


@pytest.mark.parametrize("lengths", [(100,), (3, 50, 1, 1, 30), (1,) * 64, (8, 8, 8), (8, 8, 9), (8, 8, 10)])
@pytest.mark.parametrize("isolate_documents", [False, True])
def test_blocks_joined_are_the_documents_joined(lengths, isolate_documents):
    blocks = column(pack_lengths(lengths, 8, isolate_documents=isolate_documents))
    assert joined(blocks) == list(range(1, sum(lengths) + 1))
    assert {len(block) for block in blocks[:-2]} <= {8}
    assert len(blocks) == -(-sum(lengths) // 8)
    assert all(2 <= len(block) <= 8 for block in blocks), "a lone token would predict nothing"


def test_lone_last_token_gets_company():
    assert list(map(len, column(pack_lengths([17], 8)))) == [8, 7, 2]


def test_real_documents_are_packed_whole(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"document {number} \U0001f600 " * (10 * number + 1))
    documents = load_documents(f"text:{tmp_path}/*.txt", "all")
    tokenizer = train_tokenizer(documents, 270)
    blocks = pack_documents(documents, tokenizer, 32)
    expected = "".join(text + tokenizer.eos_token for text in documents["text"])
    assert tokenizer.decode(joined(blocks["input_ids"])) == expected


def test_positions_restart_with_every_document_and_block():
    blocks = pack_lengths([3, 1, 9, 5], 8, isolate_documents=True)
    assert column(blocks, "position_ids") == [[0, 1, 2, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0, 1, 2], [0, 1]]
    assert set(pack_lengths([3, 1, 9, 5], 8)[0]) == {"input_ids"}


@pytest.mark.parametrize("max_tokens", [8, 9, 20, 1000])
def test_max_tokens_takes_the_first(max_tokens):
    assert joined(column(pack_lengths([5, 30, 5], 8, max_tokens=max_tokens))) == list(
        range(1, min(max_tokens, 40) + 1)
    )


@pytest.fixture
def words(tmp_path):
    """Documents of one word a line, and a tokenizer of theirs."""
    lines = [" ".join(f"w{number * k % 97}" for k in range(1, 12)) for number in range(120)]
    for number, length in enumerate((1, 60, 3, 56)):
        (tmp_path / f"{number}.txt").write_text("\n".join(lines[:length]))
    documents = load_documents(f"text:{tmp_path}/*.txt", "all")
    return documents, train_tokenizer(documents, 300)


def test_selected_documents_are_packed_in_their_new_order(words):
    documents, tokenizer = words
    blocks = pack_documents(documents.select([2, 0]), tokenizer, 16)
    assert tokenizer.decode(joined(blocks["input_ids"])) == "".join(
        documents[number]["text"] + tokenizer.eos_token for number in (2, 0)
    )


def test_rows_pieces_and_processes_change_no_token(words, tmp_path, monkeypatch):
    documents, tokenizer = words
    whole = pack_documents(documents, tokenizer, 16, isolate_documents=True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "processes"))
    fingerprint = blocks_fingerprint(whole)
    monkeypatch.setattr(tokenization, "CALL_CHARACTERS", 200)
    assert (
        blocks_fingerprint(pack_documents(documents, tokenizer, 16, isolate_documents=True, num_proc=2)) == fingerprint
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "pieces"))
    monkeypatch.setattr(documents_module, "ROW_CHARACTERS", 500)
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 50)
    rows = load_documents(f"text:{tmp_path}/*.txt", "all")
    assert len(rows) > 2 * len(documents)
    assert blocks_fingerprint(pack_documents(rows, tokenizer, 16, isolate_documents=True)) == fingerprint


def test_blocks_are_cached_by_documents_and_settings(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("a text with words enough for a few blocks of tokens " * 3)
    tokenizer = train_tokenizer(load_documents(f"text:{path}", "all"), 260)

    def packed(length_tokens=16, **settings):
        documents = load_documents(f"text:{path}", "all")
        return pack_documents(documents, tokenizer, length_tokens, **settings)

    first = packed()
    variants = [packed(17), packed(isolate_documents=True), packed(max_tokens=20)]
    assert len({blocks._fingerprint for blocks in (first, *variants)}) == 4
    with monkeypatch.context() as context:
        context.setattr(packing, "packed_blocks", None)  # the second time nothing is read
        assert packed().cache_files == first.cache_files
    path.write_text("another text, longer than one block of tokens")
    assert tokenizer.decode(joined(packed()["input_ids"])) == path.read_text() + tokenizer.eos_token


def test_corpus_too_small_for_its_context_is_refused():
    documents = Dataset.from_dict({"text": ["abcdefghi"]})
    tokenizer = train_tokenizer(documents, 257)  # of bytes: ten tokens
    assert len(pack_documents(documents, tokenizer, 10)) == 1
    with pytest.raises(ValueError, match=r"too small for one block.*at least 11 tokens .*got 10"):
        pack_documents(documents, tokenizer, 11)
    with pytest.raises(ValueError, match=r"max_tokens must be at least length_tokens \(9\), got 8"):
        pack_documents(documents, tokenizer, 9, max_tokens=8)
    with pytest.raises(ValueError, match="length_tokens must be at least 3, got 2"):
        pack_documents(documents, tokenizer, 2)


def test_collator_pads_on_the_right_and_predicts_every_token_but_padding():
    batch = PackedCollator(pad_token_id=7)([{"input_ids": [7, 5, 7, 7]}, {"input_ids": [1, 7]}])
    assert set(batch) == {"input_ids", "labels"}, "an attention mask would hide packed documents"
    assert batch["input_ids"].tolist() == [[7, 5, 7, 7], [1, 7, 7, 7]]
    assert batch["labels"].tolist() == [[7, 5, 7, 7], [1, 7, -100, -100]], "eos is predicted though it also pads"
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64


def test_collator_never_predicts_across_isolated_documents():
    blocks = [
        {"input_ids": [1, 2, 3, 4, 5], "position_ids": [0, 1, 0, 1, 2]},
        {"input_ids": [6, 7, 8], "position_ids": [0, 1, 0]},
    ]
    batch = PackedCollator(pad_token_id=0)(blocks)
    assert batch["labels"].tolist() == [[-100, 2, -100, 4, 5], [-100, 7, -100, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 0, 1]], "padding is a document of its own"
    assert batch["position_ids"].dtype == torch.int64


def test_isolated_batches_are_recognised_as_packed_by_transformers():
    from transformers.masking_utils import find_packed_sequence_indices

    batch = PackedCollator(pad_token_id=0)(pack_lengths([3, 6, 4], 8, isolate_documents=True))
    assert find_packed_sequence_indices(batch["position_ids"]).tolist() == [
        [0, 0, 0, 1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1, 2, 2, 2],
    ]
