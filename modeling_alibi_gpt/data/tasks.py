"""Synthetic tasks whose answer appears earlier in the sequence: copying, associative recall and passkey retrieval.

All tasks share one vocabulary and one layout: a body of random tokens that contains the answer, then the question and
the answer.
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

from modeling_alibi_gpt.chunked_loss import IGNORED_LABEL
from modeling_alibi_gpt.data.dataset_cache import cached_dataset


PREFIX = "task:"
END, QUESTION = "<end>", "?"
NUM_KEYS, NUM_VALUES, NUM_NOISE = 8, 32, 32
NUM_PAIRED_VALUES = 16  # a recall pair holds one of the first 16 values
NUM_DIGITS = 10
FILLER_TOKENS = 16  # the passkey is hidden among the first 16 noise tokens, repeated in order
_KEYS = 2  # first id of a key, after END and QUESTION
_VALUES = _KEYS + NUM_KEYS
_NOISE = _VALUES + NUM_VALUES
_PAIRS = _NOISE + NUM_NOISE
SPLITS = ("train", "validation", "test")
NUM_VALIDATION_EXAMPLES = 512
EXAMPLES_PER_CALL = 1024
TASKS_VERSION = 1  # part of every cache key; increment it when the same parameters give different examples


@dataclass(frozen=True, kw_only=True)
class Task:
    """Parsed form of ``task:NAME,KEY=NUMBER,...``.

    Attributes:
        name: ``copy``, ``recall`` or ``passkey``.
        pairs: Number of key-value pairs in the body of ``recall``; each pair is one token.
        questions: Number of questions in ``recall``; pairs are drawn with replacement, so no answer excludes another.
        digits: Digits of the ``passkey``, one token each.
        examples: Number of examples in the training split.
        seed: Seed of the examples.
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
        is_answer: ``(L,)`` bool: the answer tokens, which have the same positions in every sequence.
        first_answer: Start and end of the first answer, in tokens.
        distance_tokens: Mean distance from the first token of that answer back to its occurrence in the body.
    """

    input_ids: np.ndarray
    is_answer: np.ndarray
    first_answer: tuple[int, int]
    distance_tokens: float


def is_task(source: str | Sequence[object]) -> bool:
    """Whether a source is a task, rather than a text or a mixture."""
    return isinstance(source, str) and source.startswith(PREFIX)


def parse_task(source: str) -> Task:
    """Parse a task source.

    Args:
        source: ``task:copy``, ``task:recall`` or ``task:passkey``, followed by any number of ``,KEY=NUMBER``. The
            keys are ``pairs`` and ``questions`` (recall), ``digits`` (passkey), ``examples`` and ``seed`` (all).

    Raises:
        ValueError: The task is unknown, or a parameter is unknown, belongs to another task or is out of range.
    """
    name, *words = source.removeprefix(PREFIX).split(",")
    if not is_task(source) or name not in _MAKERS:
        raise ValueError(f"unknown task {source!r}: expected {PREFIX} followed by one of {', '.join(_MAKERS)}")
    known = ("examples", "seed", *_PARAMETERS[name])
    values = {}
    for word in words:
        key, _, number = word.partition("=")
        if key not in known or not number.isdecimal():
            raise ValueError(
                f"{source}: {word!r} is not a parameter: expected KEY=NUMBER with KEY one of {', '.join(known)}"
            )
        values[key] = int(number)
    task = Task(name=name, **values)
    for key, largest in (("pairs", NUM_KEYS), ("questions", 64), ("digits", 64), ("examples", 2**31)):
        if not 1 <= getattr(task, key) <= largest:
            raise ValueError(f"{source}: {key} must be from 1 to {largest}, got {getattr(task, key)}")
    return task


def make_examples(
    task: Task, num_examples: int, length_tokens: int, *, split: str, depth: float | None = None, part: int = 0
) -> Examples:
    """Make sequences of a task, deterministically.

    ``copy``: a key, random values, the key again and the values again, which are the answer. It has no depth, since
    all answer tokens are equally far from their originals. ``recall``: pairs at random positions in random noise,
    then questions, each a question mark, a key and its value. A pair is one token, so that a single attention layer
    can find it. ``passkey``: a key and a number in repetitive noise, then a question mark, the key and the number.

    Args:
        task: From ``parse_task``.
        num_examples: Number of sequences N.
        length_tokens: Tokens per sequence L.
        split: ``train``, ``validation`` or ``test``; each has its own random numbers.
        depth: Relative position in the body of the item that is asked for first, from 0 (start) to 1 (end). None
            draws a position for each sequence.
        part: Part of the split; each has its own random numbers.

    Raises:
        ValueError: The split is unknown, the task does not fit the length, or ``copy`` is given a depth.
    """
    if split not in SPLITS:
        raise ValueError(f"split of a task must be one of {', '.join(SPLITS)}, got {split!r}")
    # The random numbers do not depend on depth: cells of a grid differ only in the position of the item.
    rng = np.random.default_rng([task.seed, SPLITS.index(split), length_tokens, part])
    return _MAKERS[task.name](task, rng, num_examples, length_tokens, depth)


def shortest_length(task: Task) -> int:
    """Length in tokens of the shortest sequence that a task fits in."""
    return {"copy": 4, "recall": task.pairs + 3 * task.questions, "passkey": 2 * task.digits + 3}[task.name]


def task_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer for all tasks. It splits on white space into words such as ``?``, ``k0``, ``v3``, ``n7``, ``k0v3``."""
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
    """The training or validation split as rows of ``input_ids`` and ``labels``, cached on disk.

    Labels are -100 outside the answers.

    Raises:
        ValueError: The task does not fit the length.
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
        raise ValueError("task:copy has no depth: all of its answer tokens are equally far from their originals")
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
        order[:, round(depth * (num_body - 1))] = -1  # sorts first
    places = order.argsort(axis=1)[:, : task.pairs]
    rows = np.arange(num)[:, None]
    ids[rows, places] = _PAIRS + NUM_PAIRED_VALUES * keys + values
    asked = rng.integers(task.pairs, size=(num, task.questions))
    asked[:, 0] = 0  # the first question asks for the pair at the given depth
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
        raise ValueError(f"task:{task.name} needs at least {shortest} tokens per sequence, got {length_tokens}")


_MAKERS: dict[str, Callable[..., Examples]] = {"copy": _copy, "recall": _recall, "passkey": _passkey}
_PARAMETERS: dict[str, tuple[str, ...]] = {"copy": (), "recall": ("pairs", "questions"), "passkey": ("digits",)}
