"""Synthetic tasks as training data, and the loss of a model on their answers."""

from typing import Any

import numpy as np
from transformers import Trainer

from modeling_alibi_gpt.chunked_loss import IGNORED_LABEL
from modeling_alibi_gpt.data.packing import blocks_fingerprint
from modeling_alibi_gpt.data.tasks import parse_task, task_dataset, task_tokenizer
from modeling_alibi_gpt.data.tokenization import TokenStream
from modeling_alibi_gpt.evaluation.measurement import perplexity_figures
from modeling_alibi_gpt.evaluation.scoring import perplexity_of, score_stream
from modeling_alibi_gpt.training.experiment import ExperimentConfig


_OF_TEXT = (
    "validation_source",
    "tokenizer",
    "isolate_documents",
    "max_train_tokens",
    "max_validation_tokens",
    "streaming",
    "train_length_schedule",
)


def task_data(config: ExperimentConfig) -> dict[str, Any]:
    """The fields of ``PreparedData`` for an experiment whose source is a task; ``validation_stream`` is None.

    Raises:
        ValueError: The task is unknown or does not fit the training length, or a setting applies to texts only.
    """
    data = config.data
    for name in _OF_TEXT:
        if value := getattr(data, name):
            raise ValueError(f"data.{name} applies to texts, not to {data.source}: leave it out, got {value!r}")
    if config.milestones is not None:
        raise ValueError(f"milestones need a text, but {data.source} has none: leave them out")
    task = parse_task(data.source)
    train, validation = (task_dataset(task, data.train_length_tokens, split) for split in ("train", "validation"))
    fingerprint = "+".join(map(blocks_fingerprint, (train, validation)))
    return {
        "tokenizer": task_tokenizer(),
        "train": train,
        "validation": validation,
        "validation_stream": None,
        "fingerprint": fingerprint,
        "token_fingerprint": fingerprint,
    }


def validation_figures(trainer: Trainer, stream: TokenStream | None, length_tokens: int) -> dict[str, Any]:
    """Loss figures of a trained model on its validation text or, without a ``stream``, on the answers of its task."""
    if stream is not None:
        scores = score_stream(
            trainer.model,
            stream.input_ids,
            length_tokens=length_tokens,
            protocol="nonoverlapping",
            device=trainer.args.device,
        )
        return perplexity_figures(scores, stream.num_bytes)
    nats_per_token = trainer.evaluate()["eval_nats_per_token"]
    labels = np.asarray(trainer.eval_dataset.with_format("numpy")["labels"][:])
    return {
        "nats_per_token": nats_per_token,
        "perplexity": perplexity_of(nats_per_token),
        "bits_per_byte": None,
        "num_tokens": int((labels != IGNORED_LABEL).sum()),
    }
