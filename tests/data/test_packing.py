"""Packing that drops nothing, and batches that predict what they should and nothing else."""

import datasets
import pytest
import torch
from datasets import Dataset, Features, List, Value

from modeling_alibi_gpt.data import packing as data
from modeling_alibi_gpt.data.corpora import load_documents
from modeling_alibi_gpt.data.packing import PackedCollator, pack_documents
from modeling_alibi_gpt.data.tokenization import tokenize_documents, train_tokenizer


FEATURES = Features({"input_ids": List(Value("int32"))})


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


def documents_of_lengths(*lengths):
    """Documents that count on from 1, so that every token is another one."""
    starts = [1 + sum(lengths[:index]) for index in range(len(lengths))]
    rows = [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=True)]
    return Dataset.from_dict({"input_ids": rows}, features=FEATURES)


def joined(rows):
    return [token for row in rows for token in row]


@pytest.mark.parametrize("lengths", [(100,), (3, 50, 1, 1, 30), (1,) * 64, (8, 8, 8), (8, 8, 9), (8, 8, 10)])
@pytest.mark.parametrize("isolate_documents", [False, True])
def test_blocks_joined_are_the_documents_joined(lengths, isolate_documents):
    blocks = pack_documents(documents_of_lengths(*lengths), 8, isolate_documents=isolate_documents)["input_ids"][:]
    assert joined(blocks) == list(range(1, sum(lengths) + 1))
    assert {len(block) for block in blocks[:-2]} <= {8}
    assert len(blocks) == -(-sum(lengths) // 8)
    assert all(2 <= len(block) <= 8 for block in blocks), "a lone token would predict nothing"


def test_lone_last_token_gets_company():
    blocks = pack_documents(documents_of_lengths(17), 8)["input_ids"]
    assert [len(block) for block in blocks] == [8, 7, 2]


def test_real_documents_are_packed_whole(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"document {number} \U0001f600 " * (10 * number + 1))
    documents = load_documents(f"text:{tmp_path}/*.txt", "all")
    tokenizer = train_tokenizer(documents, 270)
    blocks = pack_documents(tokenize_documents(documents, tokenizer), 32)
    expected = "".join(text + tokenizer.eos_token for text in documents["text"])
    assert tokenizer.decode(joined(blocks["input_ids"])) == expected


def test_positions_restart_with_every_document_and_block():
    blocks = pack_documents(documents_of_lengths(3, 1, 9, 5), 8, isolate_documents=True)
    assert blocks["position_ids"][:] == [[0, 1, 2, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0, 1, 2], [0, 1]]
    assert "position_ids" not in pack_documents(documents_of_lengths(3, 1, 9, 5), 8).column_names


@pytest.mark.parametrize("max_tokens", [8, 9, 20, 1000])
def test_max_tokens_takes_the_first(max_tokens):
    blocks = pack_documents(documents_of_lengths(5, 30, 5), 8, max_tokens=max_tokens)
    assert joined(blocks["input_ids"]) == list(range(1, min(max_tokens, 40) + 1))


def test_shuffled_documents_are_packed_in_their_new_order():
    tokenized = documents_of_lengths(5, 6, 7).select([2, 0])
    assert joined(pack_documents(tokenized, 4)["input_ids"]) == [*range(12, 19), *range(1, 6)]


def test_blocks_are_cached_by_documents_and_settings(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("a text with words enough for a few blocks of tokens " * 3)
    tokenizer = train_tokenizer(load_documents(f"text:{path}", "all"), 260)

    def packed(length_tokens=16, **settings):
        documents = load_documents(f"text:{path}", "all")
        return pack_documents(tokenize_documents(documents, tokenizer), length_tokens, **settings)

    first = packed()
    variants = [packed(17), packed(isolate_documents=True), packed(max_tokens=20)]
    assert len({blocks._fingerprint for blocks in (first, *variants)}) == 4
    with monkeypatch.context() as context:
        context.setattr(data, "_documents", None)  # the second time nothing is read
        assert packed().cache_files == first.cache_files
    path.write_text("another text, longer than one block of tokens")
    assert tokenizer.decode(joined(packed()["input_ids"])) == path.read_text() + tokenizer.eos_token


def test_corpus_too_small_for_its_context_is_refused():
    assert len(pack_documents(documents_of_lengths(10), 10)) == 1
    with pytest.raises(ValueError, match=r"too small for its context.*at least 11 tokens .*got 10"):
        pack_documents(documents_of_lengths(4, 6), 11)
    with pytest.raises(ValueError, match=r"max_tokens must be at least length_tokens \(9\), got 8"):
        pack_documents(documents_of_lengths(100), 9, max_tokens=8)
    with pytest.raises(ValueError, match="length_tokens must be at least 3, got 2"):
        pack_documents(documents_of_lengths(100), 2)


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

    blocks = pack_documents(documents_of_lengths(3, 6, 4), 8, isolate_documents=True)
    batch = PackedCollator(pad_token_id=0)(list(blocks))
    assert find_packed_sequence_indices(batch["position_ids"]).tolist() == [
        [0, 0, 0, 1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1, 2, 2, 2],
    ]
