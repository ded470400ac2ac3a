"""Tasks: what the sequences hold, where their answers lie, and that they are the same for the same arguments."""

from pathlib import Path

import datasets
import numpy as np
import pytest

from modeling_alibi_gpt.data.packing import PackedCollator
from modeling_alibi_gpt.data.tasks import (
    NUM_VALIDATION_EXAMPLES,
    Task,
    make_examples,
    parse_task,
    shortest_length,
    task_dataset,
    task_tokenizer,
)


SOURCES = ("task:copy", "task:recall", "task:passkey", "task:recall,pairs=7,questions=3", "task:passkey,digits=2")


def task_sequences(input_ids: np.ndarray) -> list[list[str]]:
    return [task_tokenizer().convert_ids_to_tokens(row.tolist()) for row in input_ids]


def test_sources_are_read_with_their_parameters() -> None:
    assert parse_task("task:copy") == Task(name="copy")
    assert parse_task("task:recall,pairs=5,seed=3,examples=100") == Task(name="recall", pairs=5, seed=3, examples=100)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("task:sort", "unknown task 'task:sort': expected task: followed by one of copy, recall, passkey"),
        ("recall", "unknown task 'recall'"),
        ("task:copy,pairs=3", "'pairs=3' is not a parameter: expected KEY=NUMBER with KEY one of examples, seed"),
        ("task:recall,pairs", "'pairs' is not a parameter"),
        ("task:recall,pairs=-1", "'pairs=-1' is not a parameter"),
        ("task:recall,pairs=9", "pairs must be from 1 to 8, got 9"),
        ("task:recall,examples=0", "examples must be from 1 to 2147483648, got 0"),
    ],
)
def test_sources_that_say_nothing_are_refused(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_task(source)


@pytest.mark.parametrize("source", [source for source in SOURCES if "recall" not in source])
@pytest.mark.parametrize("extra", [0, 1, 50])
def test_the_answer_is_what_stands_behind_the_key_in_the_body(source: str, extra: int) -> None:
    task = parse_task(source)
    length = shortest_length(task) + extra
    examples = make_examples(task, 40, length, split="train")
    start, stop = examples.first_answer
    assert stop == length and examples.is_answer.nonzero()[0].tolist() == list(range(start, stop))
    distances = []
    for row in task_sequences(examples.input_ids):
        key, answer = row[start - 1], row[start:stop]
        (found,) = [at for at in range(start - 1) if row[at] == key]
        assert row[found + 1 : found + 1 + len(answer)] == answer
        distances.append(start - found - 1)
    assert np.mean(distances) == pytest.approx(examples.distance_tokens)


@pytest.mark.parametrize("source", ["task:recall", "task:recall,pairs=7,questions=3"])
def test_every_question_has_the_answer_of_its_key(source: str) -> None:
    task = parse_task(source)
    examples = make_examples(task, 40, 80, split="train")
    (answers,) = examples.is_answer.nonzero()
    assert len(answers) == task.questions and examples.first_answer == (answers[0], answers[0] + 1)
    distances = []
    for row in task_sequences(examples.input_ids):
        body = row[: answers[0] - 2]
        pairs = {word[:2]: (word[2:], at) for at, word in enumerate(body) if word.startswith("k")}
        assert len(pairs) == task.pairs
        assert all(row[at] == pairs[row[at - 1]][0] and row[at - 2] == "?" for at in answers)
        distances.append(answers[0] - pairs[row[answers[0] - 1]][1])
    assert np.mean(distances) == pytest.approx(examples.distance_tokens)


@pytest.mark.parametrize("length", [10, 11])
def test_copies_fill_the_sequence(length: int) -> None:
    examples = make_examples(parse_task("task:copy"), 40, length, split="test")
    assert examples.input_ids.shape == (40, length) and examples.input_ids.dtype == np.int32
    for row in task_sequences(examples.input_ids):
        assert row[-5:] == row[-10:-5] and row[-5] == "k0"


@pytest.mark.parametrize("source", ["task:recall", "task:passkey"])
def test_depth_is_where_the_asked_item_lies(source: str) -> None:
    task = parse_task(source)
    at_depths = {
        depth: make_examples(task, 20, 100, split="test", depth=depth) for depth in (0.0, 0.25, 0.5, 0.75, 1.0)
    }
    start = at_depths[0.0].first_answer[0]
    tail = 3 * task.questions if source == "task:recall" else task.digits + 2
    item = 1 if source == "task:recall" else task.digits + 1
    for depth, examples in at_depths.items():
        first = start - examples.distance_tokens - (source == "task:passkey")  # token of the item
        assert first == pytest.approx(depth * (100 - tail - item), abs=2)
    numbers = [examples.input_ids[:, start] for examples in at_depths.values()]
    assert all((other == numbers[0]).all() for other in numbers)  # only the place differs


def test_copying_has_no_depth() -> None:
    with pytest.raises(ValueError, match="task:copy has no depth"):
        make_examples(parse_task("task:copy"), 1, 20, split="test", depth=0.5)


@pytest.mark.parametrize("source", SOURCES)
def test_examples_follow_from_their_arguments(source: str) -> None:
    task = parse_task(source)
    made = make_examples(task, 30, 64, split="train").input_ids
    assert (make_examples(task, 30, 64, split="train").input_ids == made).all()
    for other in (
        make_examples(task, 30, 64, split="validation"),
        make_examples(task, 30, 64, split="train", part=1),
        make_examples(parse_task(f"{source},seed=1"), 30, 64, split="train"),
    ):
        assert (other.input_ids != made).any(axis=1).all()


@pytest.mark.parametrize("source", SOURCES)
def test_what_does_not_fit_is_refused(source: str) -> None:
    task = parse_task(source)
    shortest = shortest_length(task)
    make_examples(task, 2, shortest, split="train")
    with pytest.raises(ValueError, match=f"needs at least {shortest} tokens per sequence, got {shortest - 1}"):
        make_examples(task, 2, shortest - 1, split="train")


def test_datasets_hold_the_labels_of_answers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    task = parse_task("task:recall,examples=1100")  # more than are drawn at once
    rows = task_dataset(task, 40, "train")
    assert len(rows) == 1100 and len(task_dataset(task, 40, "validation")) == NUM_VALIDATION_EXAMPLES
    ids = np.array(rows["input_ids"])
    assert len(np.unique(ids, axis=0)) == 1100
    batch = PackedCollator(pad_token_id=0)([rows[0], rows[1]])
    is_answer = make_examples(task, 1, 40, split="train").is_answer
    assert (batch["labels"][:, is_answer] == batch["input_ids"][:, is_answer]).all()
    assert (batch["labels"][:, ~is_answer] == -100).all() and is_answer.sum() == task.questions


def test_the_vocabulary_is_the_ids() -> None:
    tokenizer = task_tokenizer()
    assert tokenizer("? k0 v3 n31 k1v2").input_ids == [1, 2, 13, 73, 92]
    assert len(tokenizer) == 202 and tokenizer.pad_token_id == tokenizer.eos_token_id == 0
