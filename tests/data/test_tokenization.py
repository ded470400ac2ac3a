"""Tokenizers that lose nothing, and token streams whose bytes add up to the text."""

import json
import logging
import random

import datasets
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from modeling_alibi_gpt.data import documents as documents_module
from modeling_alibi_gpt.data import tokenization, tokenizer_training
from modeling_alibi_gpt.data.corpora import load_documents
from modeling_alibi_gpt.data.documents import document_rows
from modeling_alibi_gpt.data.encoder import Encoder
from modeling_alibi_gpt.data.tokenization import token_rows, token_stream, tokenization_key
from modeling_alibi_gpt.data.tokenizer_files import load_tokenizer
from modeling_alibi_gpt.data.tokenizer_training import END_OF_TEXT, cached_tokenizer, train_tokenizer


TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.\n\n\tNot at all.  \n",
    "\u4e16\u754c\uff0c\u4f60\u597d\u3002 \U0001f468\u200d\U0001f469\u200d\U0001f467 caf\u00e9 e\u0301 \u00df\r\n",
    "   leading and trailing spaces   ",
    f"a special token spelt out: {END_OF_TEXT} and on",
    "\U0001f600",
]


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(Dataset.from_dict({"text": TEXTS * 3}), 320)


@pytest.fixture(scope="module")
def gpt2_style(trained, tmp_path_factory):
    """The two files of the original GPT-2 and nothing else; its offsets leave leading spaces out."""
    folder = tmp_path_factory.mktemp("gpt2")
    trained.backend_tokenizer.model.save(str(folder))
    return load_tokenizer(folder)


@pytest.fixture(params=["trained", "gpt2_style"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def write_documents(folder, documents=TEXTS):
    folder.mkdir()
    for number, text in enumerate(documents):
        (folder / f"{number}.txt").write_bytes(text.encode())
    return load_documents(f"text:{folder}/*.txt", "all")


def tokens_of(documents, tokenizer):
    """Tokens of each document."""
    found = []
    for ids, is_first in token_rows(document_rows(documents), tokenizer):
        assert ids.dtype == "int32"
        found += [[]] if is_first else []
        found[-1] += ids.tolist()
    return found


def test_trained_tokenizer_decodes_every_text_to_itself(trained):
    for text in [*TEXTS, "".join(map(chr, range(0x250))), "never seen: \u0ca0_\u0ca0"]:
        assert trained.decode(trained(text)["input_ids"]) == text


def test_trained_tokenizer_has_one_special_token_and_no_length_limit(trained):
    special = {trained.bos_token, trained.eos_token, trained.pad_token, trained.unk_token}
    assert special == {END_OF_TEXT}
    assert trained.all_special_ids == [0]
    assert len(trained) == 320
    assert trained.model_max_length > 10**18
    assert trained("abc")["input_ids"] == trained("abc", add_special_tokens=False)["input_ids"]


def test_training_is_deterministic(trained):
    again = train_tokenizer(Dataset.from_dict({"text": TEXTS * 3}), 320)
    assert again.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()


def test_vocabulary_must_hold_the_bytes_and_the_special_token():
    documents = Dataset.from_dict({"text": TEXTS})
    assert len(train_tokenizer(documents, 257)) == 257
    with pytest.raises(ValueError, match="at least 257 .*, got 256"):
        train_tokenizer(documents, 256)


def test_cached_tokenizer_is_trained_once_for_a_corpus_and_size(tmp_path, monkeypatch):
    documents, other = write_documents(tmp_path / "a"), write_documents(tmp_path / "b", ["other words"])
    cache = tmp_path / "cache"
    first = cached_tokenizer(documents, 300, cache)
    trainings = []
    monkeypatch.setattr(
        tokenizer_training,
        "train_tokenizer",
        lambda *args, **kwargs: trainings.append(args) or train_tokenizer(*args, **kwargs),
    )
    second = cached_tokenizer(documents, 300, cache)
    assert second.backend_tokenizer.to_str() == first.backend_tokenizer.to_str()
    assert trainings == []
    cached_tokenizer(documents, 301, cache)
    cached_tokenizer(other, 300, cache)
    assert len(trainings) == 2
    assert len(list(cache.iterdir())) == 3, "nothing is left beside the three tokenizers"


def test_cached_tokenizer_leaves_nothing_when_it_is_stopped(tmp_path, monkeypatch):
    documents, cache = write_documents(tmp_path / "a"), tmp_path / "cache"

    def stop(self, folder):
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(PreTrainedTokenizerFast, "save_pretrained", stop)
        with pytest.raises(KeyboardInterrupt):
            cached_tokenizer(documents, 300, cache)
    assert list(cache.iterdir()) == []
    assert len(cached_tokenizer(documents, 300, cache)) == 300


def test_cached_tokenizer_takes_that_of_a_faster_run(tmp_path, monkeypatch):
    documents, cache = write_documents(tmp_path / "a"), tmp_path / "cache"

    def train_while_another_finishes(*args, **kwargs):
        with monkeypatch.context() as context:
            context.setattr(tokenizer_training, "train_tokenizer", train_tokenizer)
            cached_tokenizer(*args, cache)
        return train_tokenizer(*args, **kwargs)

    monkeypatch.setattr(tokenizer_training, "train_tokenizer", train_while_another_finishes)
    assert len(cached_tokenizer(documents, 300, cache)) == 300
    assert len(list(cache.iterdir())) == 1


def test_saved_tokenizer_is_that_of_auto_tokenizer(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    for loaded in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        for text in TEXTS:
            assert loaded(text)["input_ids"] == trained(text)["input_ids"]
        assert loaded.model_max_length == trained.model_max_length
        assert loaded.pad_token_id == loaded.eos_token_id == 0


def test_gpt2_files_alone_load_and_pad_with_eos(gpt2_style, trained):
    assert gpt2_style.is_fast
    assert gpt2_style.pad_token_id == gpt2_style.eos_token_id == 0
    assert gpt2_style(TEXTS[0])["input_ids"] == trained(TEXTS[0])["input_ids"]


def test_tokenizer_that_cannot_serve_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=f"no tokenizer could be loaded from '{tmp_path}/missing'"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(ValueError, match="no tokenizer could be loaded from 'nobody/nothing'"):
        load_tokenizer("nobody/nothing")

    trained.save_pretrained(tmp_path / "cut")
    whole = (tmp_path / "cut" / "tokenizer.json").read_text()
    (tmp_path / "cut" / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="no tokenizer could be loaded"):
        load_tokenizer(tmp_path / "cut")

    (tmp_path / "cut-gpt2").mkdir()
    (tmp_path / "cut-gpt2" / "vocab.json").write_text('{"a":')
    (tmp_path / "cut-gpt2" / "merges.txt").write_text("")
    with pytest.raises(ValueError, match="no tokenizer could be loaded"):
        load_tokenizer(tmp_path / "cut-gpt2")

    ByT5Tokenizer().save_pretrained(tmp_path / "slow")
    with pytest.raises(ValueError, match="is slow"):
        load_tokenizer(tmp_path / "slow")

    PreTrainedTokenizerFast(tokenizer_object=trained.backend_tokenizer).save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match="no eos token"):
        load_tokenizer(tmp_path / "endless")


def test_a_tokenizer_that_is_code_is_refused_without_a_question_and_without_running_it(trained, tmp_path, monkeypatch):
    folder = tmp_path / "code"
    trained.save_pretrained(folder)
    fields = json.loads((folder / "tokenizer_config.json").read_text())
    fields |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "y")
    with pytest.raises(ValueError, match="no tokenizer could be loaded .*it contains Python code, which is not run"):
        load_tokenizer(folder)
    assert not asked and not (tmp_path / "ran").exists()


def test_documents_end_in_eos_which_is_nowhere_else(tokenizer, tmp_path):
    documents = write_documents(tmp_path / "a")
    for ids, text in zip(tokens_of(documents, tokenizer), TEXTS, strict=True):
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in ids[:-1]
        assert tokenizer.decode(ids[:-1]) == text
        assert ids[:-1] == tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def test_tokens_are_known_by_documents_and_tokenizer(trained, tmp_path):
    documents = write_documents(tmp_path / "a")
    first, ids = tokenization_key(documents, trained), tokens_of(documents, trained)
    trained(TEXTS, padding=True, truncation=True, max_length=4)  # leaves its trace in the tokenizer, and no other
    assert tokenization_key(documents, trained) == first
    assert tokens_of(documents, trained) == ids
    assert tokenization_key(documents, train_tokenizer(documents, 257)) != first
    (tmp_path / "a" / "0.txt").write_text("changed")
    assert tokenization_key(load_documents(f"text:{tmp_path}/a/*.txt", "all"), trained) != first


def test_no_warning_beyond_the_length_of_the_tokenizer(trained, tmp_path, caplog):
    trained.save_pretrained(tmp_path / "short")
    short = AutoTokenizer.from_pretrained(tmp_path / "short", model_max_length=4)
    documents = write_documents(tmp_path / "a")
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING, logger="transformers"):
        assert max(map(len, tokens_of(documents, short))) > 4
    assert not caplog.records


LONG_TEXTS = {
    "lines": "".join(f"def function_{number}(x):\n    return x\n\n\nname = 'it'\n" for number in range(200)),
    "one line": " ".join(f"word{number % 13}, it's" for number in range(600)) + "  ",
}


@pytest.mark.parametrize("kind", LONG_TEXTS)
def test_pieces_of_a_long_text_have_the_tokens_of_the_whole(tokenizer, monkeypatch, kind):
    texts = [LONG_TEXTS[kind], "short"]
    documents = Dataset.from_dict({"text": texts})
    whole = token_stream(documents, tokenizer)
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(tokenization, "CALL_CHARACTERS", 250)
    assert len(list(documents_module.pieces_of_row(texts[0]))) > 20
    eos = [tokenizer.eos_token_id]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] + eos for text in texts]
    assert tokens_of(documents, tokenizer) == expected
    pieces = token_stream(documents, tokenizer)
    assert pieces.input_ids.tolist() == whole.input_ids.tolist() == eos + expected[0] + expected[1]
    assert pieces.num_bytes.tolist() == whole.num_bytes.tolist()


ODD_TEXTS = [
    *TEXTS,
    "a\x1cb\x1f c \x85d\xa0e\u1680f\u2003g\u2028h\u3000i\u180ej\u200bk",
    "it's  we'll 'tis\n\n \tx\r\n'd y'VE 12 345's \u0663 \u2160\u00b2 _a-b--c... ",
    " \n \n",
    "",
]


def test_words_that_are_looked_up_have_the_tokens_of_the_text(tokenizer, monkeypatch):
    """Over white space of all kinds, contractions and special tokens; a full table of words is begun anew."""
    generator = random.Random(0)
    alphabet = [*"ab'.1 \n\t\r\x1c\x85\xa0\u2003\u3000\u4e16\u0301", "'s", "'ll", "  ", END_OF_TEXT]
    texts = ODD_TEXTS + ["".join(generator.choices(alphabet, k=60)) for _ in range(300)]
    expected = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    encoder = Encoder(tokenizer)
    assert encoder._looks_up
    assert [ids.tolist() for ids in encoder.ids(texts)] == expected
    monkeypatch.setattr("modeling_alibi_gpt.data.encoder.MAX_WORDS", 50)
    assert [ids.tolist() for ids in encoder.ids(texts)] == expected


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("normalizer", {"type": "Lowercase"}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}),
        ("pre_tokenizer", None),
    ],
)
def test_other_tokenizers_encode_whole_texts(trained, part, change):
    backend = json.loads(trained.backend_tokenizer.to_str())
    other = Tokenizer.from_str(json.dumps({**backend, part: change}))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=other, eos_token=END_OF_TEXT)
    texts = ["Two words, it's", "a  b\n"]
    encoder = Encoder(tokenizer)
    assert not encoder._looks_up
    assert [ids.tolist() for ids in encoder.ids(texts)] == tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_an_added_word_that_holds_a_space_is_found(trained):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained.backend_tokenizer.to_str()), eos_token=END_OF_TEXT
    )
    tokenizer.add_tokens(["lazy dog"])
    assert Encoder(tokenizer).ids(["the lazy dog"])[0].tolist() == tokenizer("the lazy dog")["input_ids"]
    assert len(trained) in Encoder(tokenizer).ids(["the lazy dog"])[0]


def test_a_text_without_any_space_is_cut_all_the_same(trained, monkeypatch):
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 100)
    [ids] = tokens_of(Dataset.from_dict({"text": ["x" * 1000]}), trained)
    assert trained.decode(ids[:-1]) == "x" * 1000


def test_a_sample_is_spread_over_the_text_and_of_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 50)
    lines = "".join(f"line {number:05d}\n" for number in range(1000))  # 11 bytes each
    documents = Dataset.from_dict({"name": ["a", "b"], "text": [lines, lines]})
    sample = list(tokenizer_training._sample(documents, 2200))
    assert sum(map(len, sample)) == pytest.approx(2200, abs=2 * 100)
    numbers = [int(piece[5:10]) for piece in sample]
    steps = [after - before for before, after in zip(numbers, numbers[1:], strict=False)]
    assert len(numbers) > 20 and max(steps) < 120 and sum(step < 0 for step in steps) == 1
    assert "".join(tokenizer_training._sample(documents, None)) == 2 * lines
    assert "".join(tokenizer_training._sample(documents, 22_000)) == 2 * lines


def test_pieces_train_the_tokenizer_that_whole_documents_train(monkeypatch):
    documents = Dataset.from_dict({"text": list(LONG_TEXTS.values())})
    whole = train_tokenizer(documents, 300).backend_tokenizer.to_str()
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 100)
    assert train_tokenizer(documents, 300).backend_tokenizer.to_str() == whole


def test_a_tokenizer_of_a_sample_is_another_one_in_the_cache(tmp_path):
    documents, cache = write_documents(tmp_path / "a"), tmp_path / "cache"
    for sample_bytes in (None, 10**9, 50):
        cached_tokenizer(documents, 300, cache, sample_bytes=sample_bytes)
    fingerprint = documents._fingerprint
    assert {path.name for path in cache.iterdir()} == {f"bpe-300-{fingerprint}", f"bpe-300-{fingerprint}-50"}


def test_stream_is_eos_and_every_document_with_its_eos(tokenizer, tmp_path):
    documents = write_documents(tmp_path / "a")
    stream = token_stream(documents, tokenizer)
    expected = [tokenizer.eos_token_id]
    for ids in tokens_of(documents, tokenizer):
        expected += ids
    assert stream.input_ids.tolist() == expected
    assert (stream.input_ids.dtype, stream.num_bytes.dtype) == (torch.int64, torch.int32)


def test_stream_bytes_sum_to_those_of_each_document(tokenizer, tmp_path):
    stream = token_stream(write_documents(tmp_path / "a"), tokenizer)
    (ends,) = torch.where(stream.input_ids == tokenizer.eos_token_id)
    bytes_at_ends = stream.num_bytes.cumsum(0)[ends]
    assert bytes_at_ends.diff(prepend=torch.tensor([0])).tolist() == [0, *(len(text.encode()) for text in TEXTS)]
    assert (stream.num_bytes >= 0).all()


def test_stream_bytes_are_those_of_each_token(trained):
    stream = token_stream(Dataset.from_dict({"text": ["the dog \u4e16 \U0001f600!"]}), trained)
    tokens = [trained.decode([token]) for token in stream.input_ids.tolist()]
    for token, num_bytes in zip(tokens, stream.num_bytes.tolist(), strict=True):
        if token.isascii() and token != END_OF_TEXT:
            assert num_bytes == len(token)
    assert sum(stream.num_bytes.tolist()) == len("the dog \u4e16 \U0001f600!".encode())


def test_long_words_are_encoded_and_not_kept(trained):
    encoder, words = Encoder(trained), ["the", "x" * 33, "dog", "\u4e16" * 200]
    text = " ".join(words * 2)
    assert encoder.ids([text])[0].tolist() == trained(text, add_special_tokens=False).input_ids
    assert {word.strip() for word in encoder._ids_of_word} == {"the", "dog"}


def test_stream_stops_one_token_after_what_is_to_predict(trained, tmp_path):
    documents = write_documents(tmp_path / "a")
    whole = token_stream(documents, trained)
    for max_tokens in (1, 30, 31, len(whole.input_ids) - 1, 10**6):
        stream = token_stream(documents, trained, max_tokens)
        assert torch.equal(stream.input_ids, whole.input_ids[: max_tokens + 1])
        assert torch.equal(stream.num_bytes, whole.num_bytes[: max_tokens + 1])


def test_stream_of_nothing_is_refused(trained):
    with pytest.raises(ValueError, match="at least one document, got none"):
        token_stream(Dataset.from_dict({"text": []}), trained)
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        token_stream(Dataset.from_dict({"text": TEXTS}), trained, 0)
