"""Tasks whose answer stands earlier in the sequence: copying, associative recall and a passkey, made of random tokens.

All share one vocabulary and one layout: a body that holds what is asked for, then a question whose answer follows.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_alibi_gpt.data.dataset_cache import cached_dataset
from modeling_alibi_gpt.data.packing import IGNORED_LABEL


PREFIX = "task:"
END, QUESTION = "<end>", "?"
NUM_KEYS, NUM_VALUES, NUM_NOISE = 8, 32, 32
NUM_PAIRED_VALUES = 16  # the first values, of which each pair of recall has one
NUM_DIGITS = 10
FILLER_TOKENS = 16  # of the passkey: the first noise tokens, repeated in order
_KEYS = 2  # first id, after the end and the question
_VALUES = _KEYS + NUM_KEYS
_NOISE = _VALUES + NUM_VALUES
_PAIRS = _NOISE + NUM_NOISE
SPLITS = ("train", "validation", "test")
NUM_VALIDATION_EXAMPLES = 512
EXAMPLES_PER_CALL = 1024
TASKS_VERSION = 1  # part of every cache key: raise it when the same parameters give other examples


@dataclass(frozen=True, kw_only=True)
class Task:
    """What ``task:NAME,KEY=NUMBER,...`` says.

    Attributes:
        name: ``copy``, ``recall`` or ``passkey``.
        pairs: Of ``recall``: pairs in the body, each a token that stands for a key and a value.
        questions: Of ``recall``: how many of them are asked for, each drawn anew, so that no answer rules out another.
        digits: Of ``passkey``: tokens of the number.
        examples: Of the training split.
        seed: Of the examples.
    """

    name: str
    pairs: int = 4
    questions: int = 8
    digits: int = 5
    examples: int = 65536
    seed: int = 0


@dataclass(frozen=True)
class Examples:
    """N sequences of L tokens.

    Attributes:
        input_ids: ``(N, L)`` int32.
        is_answer: ``(L,)`` bool: the tokens that answer a question, in the same places in every sequence.
        first_answer: Where the first answer begins and ends.
        distance_tokens: From the first token of that answer back to where it stands in the body, the mean.
    """

    input_ids: np.ndarray
    is_answer: np.ndarray
    first_answer: tuple[int, int]
    distance_tokens: float


def is_task(source: str | Sequence[object]) -> bool:
    """Whether a source is a task; a text is none, and neither is a mixture."""
    return isinstance(source, str) and source.startswith(PREFIX)


def parse_task(source: str) -> Task:
    """The task that a source names.

    Args:
        source: ``task:copy``, ``task:recall`` or ``task:passkey``, then any of ``,KEY=NUMBER``: ``pairs`` and
            ``questions`` (recall), ``digits`` (passkey), ``examples`` and ``seed`` (all).

    Raises:
        ValueError: There is no such task, or a parameter is unknown, not the task's or out of range.
    """
    name, *words = source.removeprefix(PREFIX).split(",")
    if not is_task(source) or name not in _MAKERS:
        raise ValueError(f"unknown task {source!r}: expected {PREFIX} and one of {', '.join(_MAKERS)}")
    known = ("examples", "seed", *_PARAMETERS[name])
    values = {}
    for word in words:
        key, _, number = word.partition("=")
        if key not in known or not number.isdecimal():
            raise ValueError(f"{source}: {word!r} is no parameter, expected KEY=NUMBER with one of {', '.join(known)}")
        values[key] = int(number)
    task = Task(name=name, **values)
    for key, largest in (("pairs", NUM_KEYS), ("questions", 64), ("digits", 64), ("examples", 2**31)):
        if not 1 <= getattr(task, key) <= largest:
            raise ValueError(f"{source}: {key} must be from 1 to {largest}, got {getattr(task, key)}")
    return task


def make_examples(
    task: Task, num_examples: int, length_tokens: int, *, split: str, depth: float | None = None, part: int = 0
) -> Examples:
    """Sequences of a task, the same for the same arguments.

    ``copy``: a key, as many random values as fit twice, the key again, and the values again: the answer. There is no
    depth, since every answer token is as far from its original as the others. ``recall``: pairs at random places
    among random noise, each one token for a key and a value, so that one layer of attention can find it; then
    questions: a question mark, one of the keys and its value. ``passkey``: a key and a number among noise that repeats
    itself, then a question mark, the key and the number.

    Args:
        task: From ``parse_task``.
        num_examples: N.
        length_tokens: L.
        split: ``train``, ``validation`` or ``test``, which share no random numbers.
        depth: Where in the body the item lies that is asked for first, from 0, its start, to 1, its end; None draws a
            place for each sequence.
        part: Of the split; each has its own random numbers.

    Raises:
        ValueError: The task does not fit into the length.
    """
    if split not in SPLITS:
        raise ValueError(f"a task has the splits {', '.join(SPLITS)}, got {split!r}")
    # One part draws the same for every depth: cells of a grid differ in where the item lies and in nothing else.
    rng = np.random.default_rng([task.seed, SPLITS.index(split), length_tokens, part])
    return _MAKERS[task.name](task, rng, num_examples, length_tokens, depth)


def shortest_length(task: Task) -> int:
    """Tokens of the shortest sequence that a task fits into."""
    return {"copy": 4, "recall": task.pairs + 3 * task.questions, "passkey": 2 * task.digits + 3}[task.name]


def task_tokenizer() -> PreTrainedTokenizerFast:
    """The vocabulary of every task, its words between spaces: ``? k0 v3 n7 k0v3``."""
    words = [END, QUESTION]
    for letter, count in (("k", NUM_KEYS), ("v", NUM_VALUES), ("n", NUM_NOISE)):
        words += [f"{letter}{number}" for number in range(count)]
    words += [f"k{key}v{value}" for key in range(NUM_KEYS) for value in range(NUM_PAIRED_VALUES)]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=END))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END, eos_token=END, pad_token=END, unk_token=END
    )


def task_dataset(task: Task, length_tokens: int, split: str) -> Dataset:
    """The training or the validation split as rows of ``input_ids`` and ``labels``, cached on disk.

    Labels are -100 on all but the answers.

    Raises:
        ValueError: The task does not fit into the length.
    """
    num_examples = task.examples if split == "train" else NUM_VALIDATION_EXAMPLES
    make_examples(task, 1, length_tokens, split=split)
    return cached_dataset(
        partial(_rows, task, num_examples, length_tokens, split),
        Features({column: List(Value("int32")) for column in ("input_ids", "labels")}),
        Hasher.hash((dataclasses.astuple(task), num_examples, length_tokens, split, TASKS_VERSION)),
    )


def _rows(task: Task, num_examples: int, length_tokens: int, split: str) -> Iterator[dict[str, Any]]:
    for part, start in enumerate(range(0, num_examples, EXAMPLES_PER_CALL)):
        num_made = min(EXAMPLES_PER_CALL, num_examples - start)
        examples = make_examples(task, num_made, length_tokens, split=split, part=part)
        labels = np.where(examples.is_answer, examples.input_ids, IGNORED_LABEL)
        for ids, of_ids in zip(examples.input_ids, labels, strict=True):
            yield {"input_ids": ids, "labels": of_ids}


def _copy(task: Task, rng: np.random.Generator, num: int, length: int, depth: float | None) -> Examples:
    if depth is not None:
        raise ValueError("task:copy has no depth: each of its answer tokens is as far from the original as the others")
    _check_length(task, length)
    num_copied = length // 2 - 1
    values = _VALUES + rng.integers(NUM_VALUES, size=(num, num_copied))
    key = np.full((num, 1), _KEYS)
    start = rng.integers(_NOISE, _NOISE + NUM_NOISE, size=(num, length % 2))
    ids = np.concatenate([start, key, values, key, values], axis=1)
    return _examples(ids, [(length - num_copied, length)], num_copied + 1)


def _recall(task: Task, rng: np.random.Generator, num: int, length: int, depth: float | None) -> Examples:
    _check_length(task, length)
    num_body = length - 3 * task.questions
    ids = rng.integers(_NOISE, _NOISE + NUM_NOISE, size=(num, length))
    keys = rng.random((num, NUM_KEYS)).argsort(axis=1)[:, : task.pairs]
    values = rng.integers(NUM_PAIRED_VALUES, size=(num, task.pairs))
    order = rng.random((num, num_body))
    if depth is not None:
        order[:, round(depth * (num_body - 1))] = -1  # first of all
    places = order.argsort(axis=1)[:, : task.pairs]
    rows = np.arange(num)[:, None]
    ids[rows, places] = _PAIRS + NUM_PAIRED_VALUES * keys + values
    asked = rng.integers(task.pairs, size=(num, task.questions))
    asked[:, 0] = 0  # the pair whose depth may be given
    questions = num_body + 3 * np.arange(task.questions)
    ids[:, questions], ids[:, questions + 1] = 1, _KEYS + keys[rows, asked]
    ids[:, questions + 2] = _VALUES + values[rows, asked]
    answers = [(start + 2, start + 3) for start in questions.tolist()]
    return _examples(ids, answers, answers[0][0] - float(np.mean(places[:, 0])))


def _passkey(task: Task, rng: np.random.Generator, num: int, length: int, depth: float | None) -> Examples:
    _check_length(task, length)
    num_body, num_item = length - task.digits - 2, task.digits + 1
    ids = np.broadcast_to(_NOISE + np.arange(length) % FILLER_TOKENS, (num, length)).copy()
    numbers = _VALUES + rng.integers(NUM_DIGITS, size=(num, task.digits))
    drawn = rng.integers(num_body - num_item + 1, size=num)
    starts = drawn if depth is None else np.full(num, round(depth * (num_body - num_item)))
    item = np.concatenate([np.full((num, 1), _KEYS), numbers], axis=1)
    ids[np.arange(num)[:, None], starts[:, None] + np.arange(num_item)] = item
    ids[:, num_body] = 1
    ids[:, num_body + 1 :] = item
    first = num_body + 2
    return _examples(ids, [(first, length)], first - float(np.mean(starts + 1)))


def _examples(ids: np.ndarray, answers: list[tuple[int, int]], distance_tokens: float) -> Examples:
    is_answer = np.zeros(ids.shape[1], dtype=bool)
    for start, stop in answers:
        is_answer[start:stop] = True
    return Examples(ids.astype(np.int32), is_answer, answers[0], distance_tokens)


def _check_length(task: Task, length_tokens: int) -> None:
    if length_tokens < (shortest := shortest_length(task)):
        raise ValueError(f"task:{task.name} needs at least {shortest} tokens a sequence, got {length_tokens}")


_MAKERS: dict[str, Callable[..., Examples]] = {"copy": _copy, "recall": _recall, "passkey": _passkey}
_PARAMETERS: dict[str, tuple[str, ...]] = {"copy": (), "recall": ("pairs", "questions"), "passkey": ("digits",)}
