"""Losses under Trainer: accumulation changes nothing on any head, and label smoothing smooths the shifted loss."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, Trainer, TrainingArguments

from modeling_alibi_gpt import (
    AlibiGPTConfig,
    AlibiGPTForCausalLM,
    AlibiGPTForQuestionAnswering,
    AlibiGPTForSequenceClassification,
    AlibiGPTForTokenClassification,
)


NUM_STEPS = 2
LENGTHS = (24, 5, 17, 9, 12, 21, 6, 14)  # rows, four to a step: a mean of the means of rows is not the mean of tokens
# A loss is a mean of at most 55 terms of one sign, summed in another order.
RELATIVE_TOLERANCE = 2 * 55 * torch.finfo(torch.float32).eps


def mean_nats(logits: Tensor, targets: list[Tensor], label_smoothing: float = 0.0) -> Tensor:
    """Mean over all targets of a batch, row by row; ``logits`` has the targets' positions first in every row."""
    rows = [
        F.cross_entropy(row[: len(target)], target, reduction="sum", label_smoothing=label_smoothing)
        for row, target in zip(logits, targets, strict=True)
    ]
    return sum(rows) / sum(len(target) for target in targets)


def causal_loss(model: PreTrainedModel, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> Tensor:
    targets = [row[row >= 0][1:] for row in batch["labels"]]
    return mean_nats(model(batch["input_ids"], batch["attention_mask"]).logits, targets, label_smoothing)


def token_loss(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    targets = [row[row >= 0] for row in batch["labels"]]
    return mean_nats(model(batch["input_ids"], batch["attention_mask"]).logits, targets)


def sequence_loss(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"])


def question_loss(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    outputs = model(batch["input_ids"], batch["attention_mask"])
    starts = F.cross_entropy(outputs.start_logits, batch["start_positions"])
    return (starts + F.cross_entropy(outputs.end_logits, batch["end_positions"])) / 2


HEADS = {
    AlibiGPTForCausalLM: (lambda ids: {"labels": ids}, causal_loss),
    AlibiGPTForTokenClassification: (lambda ids: {"labels": [token % 3 for token in ids]}, token_loss),
    AlibiGPTForSequenceClassification: (lambda ids: {"labels": len(ids) % 3}, sequence_loss),
    AlibiGPTForQuestionAnswering: (lambda ids: {"start_positions": 1, "end_positions": 3}, question_loss),
}


def make_rows(head: type[PreTrainedModel]) -> list[dict]:
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 61, (length,), generator=draw).tolist() for length in LENGTHS]
    return [{"input_ids": ids, **HEADS[head][0](ids)} for ids in rows]


def collate(rows: list[dict]) -> dict[str, Tensor]:
    """Pad every row to the longest of all batches: what a question's answer competes with is the same in each."""
    batch = {}
    for name in rows[0]:
        values = [torch.tensor(row[name]) for row in rows]
        filler = torch.zeros(max(LENGTHS), dtype=torch.long)
        padding = -100 if name == "labels" else 0
        is_sequence = values[0].ndim > 0
        batch[name] = pad_sequence([*values, filler], True, padding)[:-1] if is_sequence else torch.stack(values)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(max(LENGTHS)) < lengths[:, None]).long()
    return batch


def make_model(head: type[PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AlibiGPTConfig(
        vocab_size=61,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        initializer_range=0.2,
        classifier_dropout=0.0,
        num_labels=3,
        pad_token_id=0,
        alibi_trainable="slopes",
    )
    return head(config)


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., tuple[list[float], PreTrainedModel]]:
    def run(head: type[PreTrainedModel], batch_size: int, **settings) -> tuple[list[float], PreTrainedModel]:
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=4 // batch_size,
            max_steps=NUM_STEPS,
            logging_steps=1,
            learning_rate=0.1,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            **settings,
        )
        rows = Dataset.from_list(make_rows(head))
        trainer = Trainer(make_model(head), arguments, train_dataset=rows, data_collator=collate)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], trainer.model

    return run


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_accumulated_batches_train_as_one(train: Callable, head: type[PreTrainedModel]) -> None:
    (accumulated, four), (whole, one) = train(head, 1), train(head, 4)
    with torch.no_grad():
        expected = HEADS[head][1](make_model(head), collate(make_rows(head)[:4])).item()
    assert whole[0] == pytest.approx(expected, rel=RELATIVE_TOLERANCE)
    assert accumulated == pytest.approx(whole, rel=RELATIVE_TOLERANCE)
    # The promise for float32 gradients, times the learning rate and the steps.
    for (name, weight), other in zip(one.named_parameters(), four.parameters(), strict=True):
        torch.testing.assert_close(other, weight, rtol=0.0, atol=NUM_STEPS * 0.1 * 1e-5, msg=name)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_label_smoothing_smooths_the_shifted_loss(train: Callable, batch_size: int) -> None:
    losses, _ = train(AlibiGPTForCausalLM, batch_size, label_smoothing_factor=0.2)
    model, batch = make_model(AlibiGPTForCausalLM), collate(make_rows(AlibiGPTForCausalLM)[:4])
    with torch.no_grad():
        expected = causal_loss(model, batch, label_smoothing=0.2).item()
        assert abs(causal_loss(model, batch).item() - expected) > 100 * RELATIVE_TOLERANCE * expected
    assert losses[0] == pytest.approx(expected, rel=RELATIVE_TOLERANCE)
