"""Passkey prompts in English for any model and tokenizer: a number in a long text is asked for at the end."""

from itertools import accumulate, cycle

import numpy as np
from transformers import PreTrainedTokenizerBase


PROMPT_PASSKEY = "prompt:passkey"
INSTRUCTION = "Somewhere in this text there is a passkey. Remember it, you will be asked for it at the end."
FILLER = (
    " The rain falls on the roof.",
    " A boat lies in the harbour.",
    " The clock on the wall has stopped.",
    " Someone walks along the river.",
    " It grows dark, and then light again.",
)
PASSKEY = " The passkey is {number}. Remember that {number} is the passkey."
QUESTION = " What is the passkey? The passkey is"
NUM_DIGITS = 5


def passkey_prompts(
    tokenizer: PreTrainedTokenizerBase, num_prompts: int, length_tokens: int, depth: float, seed: int
) -> tuple[np.ndarray, int, float]:
    """Make prompts of one length that end with their answers.

    Each consists of an instruction, filler, a sentence with a five-digit number, more filler, the question and the
    number. Sentences are encoded separately, so that each yields the same tokens at every position. The filler after
    the number consists of whole sentences; the filler before it may start mid-sentence to fill the length. Only
    numbers with the most common token count are used, so that all answers have the same length.

    Args:
        tokenizer: Tokenizer of the model.
        num_prompts: N.
        length_tokens: L, including the answer.
        depth: Position of the number in the filler, from 0 (start) to 1 (end), rounded to a whole sentence.
        seed: Seed of the numbers, which are the same at every length and depth.

    Returns:
        The prompts ``(N, L)``, the number of answer tokens at the end of each, and the distance in tokens from the
        answer back to the number.

    Raises:
        ValueError: The prompt is longer than ``length_tokens`` even without filler.
    """
    numbers = np.random.default_rng(seed).integers(10 ** (NUM_DIGITS - 1), 10**NUM_DIGITS, size=4 * num_prompts + 16)
    encoded = [(_encode(tokenizer, PASSKEY.format(number=n)), _encode(tokenizer, f" {n}")) for n in numbers]
    shapes = [(len(item), len(answer)) for item, answer in encoded]
    shape = max(sorted(set(shapes)), key=shapes.count)
    chosen = [pair for pair, found in zip(encoded, shapes, strict=True) if found == shape]
    chosen = [chosen[index % len(chosen)] for index in range(num_prompts)]

    begin = [*_start(tokenizer), *_encode(tokenizer, INSTRUCTION)]
    question = _encode(tokenizer, QUESTION)
    num_filler = length_tokens - len(begin) - sum(shape) - len(question)
    if num_filler < 0:
        raise ValueError(
            f"the passkey prompt needs {length_tokens - num_filler} tokens, got a length of {length_tokens}"
        )
    before, after = _filler(tokenizer, num_filler, depth)
    prompts = [[*begin, *before, *item, *after, *question, *answer] for item, answer in chosen]
    to_number = len(_encode(tokenizer, PASSKEY.split("{", maxsplit=1)[0].rstrip()))
    distance = shape[0] - to_number + len(after) + len(question)
    return np.array(prompts, dtype=np.int64), shape[1], float(distance)


def _filler(tokenizer: PreTrainedTokenizerBase, num_tokens: int, depth: float) -> tuple[list[int], list[int]]:
    """Filler before and after the passkey, ``num_tokens`` in total."""
    sentences = [_encode(tokenizer, sentence) for sentence in FILLER]
    whole: list[list[int]] = []
    num_encoded = 0
    for sentence in cycle(sentences):
        if num_encoded >= num_tokens:
            break
        whole.append(sentence)
        num_encoded += len(sentence)
    ends = [0, *(end for end in accumulate(map(len, whole)) if end <= num_tokens)]
    num_after = min(ends, key=lambda end: abs(end - (1 - depth) * num_tokens))
    stream = [token for sentence in whole for token in sentence]
    num_before = num_tokens - num_after
    return stream[len(stream) - num_before :], stream[:num_after]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token with which this tokenizer starts a text, if any."""
    around = tokenizer("").input_ids
    return around[:1] if around and around[0] == tokenizer.bos_token_id else []
