"""Mixtures: sequences of several sources in the shares that were asked for, the same ones every time."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeling_alibi_gpt.data.corpora import describe_documents, load_documents
from modeling_alibi_gpt.runtime.config import build_config
from modeling_alibi_gpt.training.experiment import DataSection, ExperimentConfig, MixturePart
from modeling_alibi_gpt.training.prepared_data import prepare_data, training_documents
from modeling_alibi_gpt.training.trainer import train


LENGTH = 32


@pytest.fixture
def mixture(make_experiment: Callable[..., ExperimentConfig], tmp_path: Path) -> Callable[..., ExperimentConfig]:
    """Lower-case words of the corpus with capital letters from rows, three to one."""
    rows = [{"body": f"{'ABCDEFGH' * 12} {number}"} for number in range(1500)]
    (tmp_path / "capitals.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def make(**settings: Any) -> ExperimentConfig:
        experiment = make_experiment()
        parts = [
            MixturePart(source=str(experiment.data.source), weight=3.0),
            MixturePart(source=f"jsonl:{tmp_path}/capitals.jsonl", weight=1.0, text_column="body"),
        ]
        settings = {"max_train_tokens": 200 * LENGTH, "max_validation_tokens": 20 * LENGTH, **settings}
        return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, source=parts, **settings))

    return make


def share_of_capitals(blocks: Any, tokenizer: Any) -> float:
    texts = tokenizer.batch_decode(blocks["input_ids"][:])
    return sum("A" in text for text in texts) / len(texts)


def test_sequences_come_in_their_shares(mixture: Callable[..., ExperimentConfig]) -> None:
    data = prepare_data(mixture())
    assert len(data.train) == 200
    # 200 independent draws of a quarter: within four standard deviations.
    assert share_of_capitals(data.train, data.tokenizer) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 200) ** 0.5)
    assert share_of_capitals(data.validation, data.tokenizer) == pytest.approx(0.25, abs=1 / 20)
    assert len(data.validation_stream.input_ids) == 20 * LENGTH + 1
    assert sum(len(ids) for ids in data.validation["input_ids"]) == 20 * LENGTH
    again = prepare_data(mixture())
    assert again.text == data.text


def test_a_mixture_ends_where_a_part_is_used_up(mixture: Callable[..., ExperimentConfig], tmp_path: Path) -> None:
    prepare_data(mixture()).tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = mixture(max_train_tokens=None, tokenizer=str(tmp_path / "tokenizer"))
    data = prepare_data(config)
    sizes = [len(prepare_data(dataclasses.replace(config, data=part)).train) for part, _ in config.data.parts]
    is_capital = ["A" in text for text in data.tokenizer.batch_decode(data.train["input_ids"][:])]
    used = [is_capital.count(False), is_capital.count(True)]
    [exhausted] = [number for number in (0, 1) if used[number] == sizes[number]]
    assert is_capital[-1] == exhausted and used[1 - exhausted] < sizes[1 - exhausted]


def test_the_fingerprint_names_every_part_and_its_share(mixture: Callable[..., ExperimentConfig]) -> None:
    config = mixture()
    found = prepare_data(config).fingerprint
    parts = [
        [
            describe_documents(load_documents(part.source, split, text_column=part.text_column))["fingerprint"]
            for part, _ in config.data.parts
        ]
        for split in ("train", "validation")
    ]
    assert found == "+".join(f"0.75*{words},0.25*{capitals}" for words, capitals in parts)
    assert config.data.source_name.startswith("3 text:") and " + 1 jsonl:" in config.data.source_name
    assert len(training_documents(config.data)["text"][:]) == 6 + sum("A" in t for t in training_texts(config))


def training_texts(config: ExperimentConfig) -> list[str]:
    return training_documents(config.data)["text"][:]


def test_a_mixture_trains(mixture: Callable[..., ExperimentConfig]) -> None:
    assert train(mixture())["num_train_tokens"] > 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "must name a source or at least one part"),
        ([{"source": "stdlib"}], r"key 'data.source\[0\].*weight' is missing"),
        ([{"source": "stdlib", "weight": 0.0}], r"'data.source\[0\].weight' must be above 0, got 0.0"),
        ([{"source": "stdlib", "weight": 1.0, "wieght": 2.0}], "wieght"),
        ({"stdlib": 1.0}, "'data.source' must be"),
    ],
)
def test_a_mixture_is_checked(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_config(DataSection, {"source": source, "train_length_tokens": 32}, "data.")
