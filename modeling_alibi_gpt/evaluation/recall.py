"""Recall: accuracy of a model's answers by sequence length and depth of the requested item."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import numpy as np
from pydantic import Field
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from modeling_alibi_gpt.checkpoints.load import (
    checkpoint_fingerprint,
    load_model_config,
    load_model_tokenizer,
)
from modeling_alibi_gpt.data.tasks import Task, is_task, make_examples, parse_task, task_tokenizer
from modeling_alibi_gpt.evaluation.grid import (
    GridConfig,
    ModelRows,
    blank_row,
    default_lengths,
    run_grid,
)
from modeling_alibi_gpt.evaluation.passkey_prompt import PROMPT_PASSKEY, passkey_prompts
from modeling_alibi_gpt.evaluation.scoring import score_tails
from modeling_alibi_gpt.runtime.config import Count, Distinct, UserPath, config_dataclass
from modeling_alibi_gpt.runtime.distributed import process_state
from modeling_alibi_gpt.runtime.records import Record, provenance


_FIGURES = ("accuracy", "token_accuracy", "nats_per_token", "num_answer_tokens", "distance_tokens")
_KEY_FIELDS = ("name", "source", "length_tokens", "depth", "num_examples", "examples_seed")


@config_dataclass
class RecallConfig(GridConfig):
    """Settings of ``alibi-gpt recall``, which measures every model at every length and depth."""

    source: str
    """``task:copy``, ``task:recall`` or ``task:passkey``, with the parameters of the training, for checkpoints trained
    on it; or ``prompt:passkey``, which asks any checkpoint in English, with its own tokenizer.
    """
    lengths_tokens: Annotated[list[int], Distinct] | None = None
    """Lengths of the sequences; null is 1, 2, 4, 8 and 16 times the shortest training length of the models."""
    depths: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Distinct] = field(
        default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0]
    )
    """Positions of the requested item, from 0 (start of the sequence) to 1 (just before the question). ``task:copy``
    has no depths.
    """
    num_examples: Count = 100
    """Number of sequences at each length and depth."""
    seed: int = 0
    """Seed of the sequences; no training sees them."""
    output: UserPath = "runs/recall.jsonl"
    """JSON Lines file to which each finished row is appended. Rows in it are not computed again, not even failed ones;
    delete their lines to retry them.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source != PROMPT_PASSKEY:
            if not is_task(self.source):
                raise ValueError(f"source must be task:NAME or {PROMPT_PASSKEY}, got {self.source!r}")
            parse_task(self.source)

    @property
    def task(self) -> Task | None:
        """The requested task; None for a prompt."""
        if self.source == PROMPT_PASSKEY:
            return None
        return dataclasses.replace(parse_task(self.source), seed=self.seed)


@dataclass(frozen=True)
class Questions:
    """Sequences that end with an answer.

    Attributes:
        input_ids: ``(N, L)``.
        num_answer_tokens: Number of answer tokens at the end of each sequence.
        distance_tokens: Mean distance from the answer back to the requested item.
    """

    input_ids: np.ndarray
    num_answer_tokens: int
    distance_tokens: float


def run_recall(config: RecallConfig, on_row: Callable[[Record], None] = lambda row: None) -> list[Record]:
    """Measure the grid and return its ``recall`` records, ordered by model, length and depth.

    Answers are teacher-forced. An example is correct if every answer token is the most likely one, that is, if greedy
    generation would produce the answer.

    Args:
        config: The grid.
        on_row: Called in the main process with each record, new or already in the file, as soon as it is available.

    Raises:
        ValueError: A model or a setting cannot be used, or a sequence does not fit into a length. If a model fails
            at a length, its record gives the reason in ``error`` instead.
    """
    # Fail before anything is measured.
    configs = {model_dir: load_model_config(model_dir, config.overrides) for model_dir in config.models}
    lengths = sorted(config.lengths_tokens or default_lengths(configs.values()))
    grid = []
    for name, model_dir in config.named_models:
        tokenizer = load_model_tokenizer(model_dir)
        if config.task and tokenizer.get_vocab() != task_tokenizer().get_vocab():
            raise ValueError(f"{model_dir} was not trained on a task; use {PROMPT_PASSKEY}, which suits any model")
        check_questions(config, tokenizer, lengths)
        model_rows = ModelRows(
            model_dir=model_dir,
            model_config=configs[model_dir],
            blanks=_blank_rows(config, name, model_dir, configs[model_dir], lengths),
            measure=partial(_measure, config, tokenizer),
        )
        grid.append(model_rows)
    return run_grid(config, grid, key_fields=_KEY_FIELDS, on_row=on_row)


def check_questions(config: RecallConfig, tokenizer: PreTrainedTokenizerBase, lengths: Sequence[int]) -> None:
    """Raise a ValueError unless a question fits into every length."""
    for length in lengths:
        for depth in _depths(config):
            _questions(config, tokenizer, length, depth, num_examples=1)


def _depths(config: RecallConfig) -> list[float | None]:
    return [None] if config.task and config.task.name == "copy" else [*config.depths]


def _questions(
    config: RecallConfig,
    tokenizer: PreTrainedTokenizerBase,
    length_tokens: int,
    depth: float | None,
    num_examples: int,
) -> Questions:
    task = config.task
    if task is None:
        assert depth is not None
        return Questions(*passkey_prompts(tokenizer, num_examples, length_tokens, depth, config.seed))
    examples = make_examples(task, num_examples, length_tokens, split="test", depth=depth)
    start, stop = examples.first_answer
    return Questions(examples.input_ids[:, :stop], stop - start, examples.distance_tokens)


def _blank_rows(
    config: RecallConfig, name: str, model_dir: str, model_config: PreTrainedConfig, lengths: Sequence[int]
) -> list[Record]:
    """The rows of a model without the measured fields."""
    where = provenance() | {
        "model_fingerprint": checkpoint_fingerprint(model_dir),
        "dtype": config.dtype,
        "attn_implementation": config.attn_implementation,
    }
    blank = blank_row("recall", config, name, model_dir, model_config, _FIGURES, where)
    asked = {"source": config.source, "num_examples": config.num_examples, "examples_seed": config.seed}
    return [
        blank | asked | {"length_tokens": length, "depth": depth} for length in lengths for depth in _depths(config)
    ]


def _measure(config: RecallConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, row: Record) -> Record:
    questions = _questions(config, tokenizer, row["length_tokens"], row["depth"], config.num_examples)
    nats, is_right = score_tails(
        model,
        questions.input_ids,
        questions.num_answer_tokens,
        batch_tokens=config.batch_tokens,
        device=process_state().device,
    )
    if not np.isfinite(nats).all():
        raise ValueError("the loss is not a finite number, so there is no answer")
    return {
        "accuracy": float(is_right.all(axis=1).mean()),
        "token_accuracy": float(is_right.mean()),
        "nats_per_token": float(nats.mean()),
        "num_answer_tokens": questions.num_answer_tokens,
        "distance_tokens": questions.distance_tokens,
    }
