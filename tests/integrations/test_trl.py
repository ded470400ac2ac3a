"""Packed documents train as if each stood alone: TRL's best-fit packing, and the flattening collator of Trainer."""

import math
import random

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    Trainer,
    TrainingArguments,
)

from modeling_alibi_gpt.checkpoints.hub import ExportConfig, export_to_hub


pytest.importorskip("trl")
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # noqa: E402


pytestmark = pytest.mark.integrations
NUM_STEPS = 3
MAX_LENGTH = 48
LENGTHS = (48, 31, 17, 40, 8, 25, 23, 29, 19)  # documents; best-fit packing makes full rows of 48 of them
# A loss is a mean of some 230 float32 terms of one sign, summed in another order: at most 230 eps on either side. Two
# updates then pass on what the first changed, scaled by a learning rate far below 1.
RELATIVE_TOLERANCE = 2 * 230 * torch.finfo(torch.float32).eps
SETTINGS = {
    "max_steps": NUM_STEPS,
    "num_train_epochs": NUM_STEPS,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "bf16": False,
}


@pytest.fixture(scope="module")
def documents(tokenizer) -> Dataset:
    draw = random.Random(1)
    rows = [[draw.randrange(1, len(tokenizer)) for _ in range(length)] for length in LENGTHS]
    return Dataset.from_dict({"input_ids": rows})


def losses(trainer: Trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def unpacked_losses(model, tokenizer, documents: Dataset, output_dir) -> list[float]:
    """Every document on a row of its own, padded, all of them in every step."""
    arguments = TrainingArguments(str(output_dir), per_device_train_batch_size=len(LENGTHS), **SETTINGS)
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    rows = documents.map(lambda row: {"labels": row["input_ids"]})
    return losses(Trainer(model, arguments, train_dataset=rows, data_collator=_keep_labels(collate, tokenizer)))


def _keep_labels(collate, tokenizer):
    """The collator, but with a document's own end-of-text tokens as labels; only padding has none."""

    def call(rows: list[dict]) -> dict:
        batch = collate([{"input_ids": row["input_ids"]} for row in rows])
        batch["labels"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
        return batch

    return call


@pytest.mark.parametrize("back_end", ["sdpa", "eager"])
@pytest.mark.parametrize("packing", [True, False], ids=["bfd", "padding_free"])
def test_sft_trains_packed_documents_as_unpacked_ones(
    make_model, tokenizer, documents: Dataset, tmp_path, packing: bool, back_end: str
) -> None:
    expected = unpacked_losses(make_model(), tokenizer, documents, tmp_path)
    assert expected[-1] < expected[0]
    model = make_model()
    model.set_attn_implementation(back_end)
    arguments = SFTConfig(
        str(tmp_path),
        packing=packing,
        padding_free=True,
        max_length=MAX_LENGTH if packing else None,
        per_device_train_batch_size=sum(LENGTHS) // MAX_LENGTH if packing else len(LENGTHS),
        **SETTINGS,
    )
    trainer = SFTTrainer(model, arguments, train_dataset=documents, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == (1, sum(LENGTHS)) and "attention_mask" not in batch
    assert (batch["position_ids"] == 0).sum() == len(LENGTHS)
    assert losses(trainer) == pytest.approx(expected, rel=RELATIVE_TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"return_flash_attn_kwargs": True}, {"return_seq_idx": True}], ids=str)
def test_flattened_documents_train_as_unpacked_ones(
    make_model, tokenizer, documents: Dataset, tmp_path, options: dict
) -> None:
    expected = unpacked_losses(make_model(), tokenizer, documents, tmp_path)
    arguments = TrainingArguments(str(tmp_path), per_device_train_batch_size=len(LENGTHS), **SETTINGS)
    collate = DataCollatorWithFlattening(**options)
    trainer = Trainer(make_model(), arguments, train_dataset=documents, data_collator=collate)
    assert losses(trainer) == pytest.approx(expected, rel=RELATIVE_TOLERANCE)


def test_mixed_documents_would_be_noticed(make_model, tokenizer, documents: Dataset, tmp_path) -> None:
    """The control: one text out of all documents has another loss, by far more than the tolerance."""
    expected = unpacked_losses(make_model(), tokenizer, documents, tmp_path)[0]
    tokens = torch.tensor([[token for row in documents["input_ids"] for token in row]])
    starts = torch.tensor([0, *LENGTHS]).cumsum(0)[:-1]
    labels = tokens.clone()
    labels[:, starts] = -100
    with torch.no_grad():
        mixed = make_model()(tokens, labels=labels).loss.item()
    assert abs(mixed - expected) > 100 * RELATIVE_TOLERANCE * expected


@pytest.fixture
def folder(make_model, tokenizer, tmp_path) -> str:
    """A checkpoint, which TRL loads by the class that its config names."""
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("exported", [False, True], ids=["checkpoint", "remote code"])
def test_sft_loads_a_folder(folder: str, exported: bool, make_model, tokenizer, documents: Dataset, tmp_path) -> None:
    """The folder trains as the model that was saved there."""
    arguments = {"max_length": MAX_LENGTH, "per_device_train_batch_size": len(LENGTHS), **SETTINGS}
    options = {"train_dataset": documents, "processing_class": tokenizer}
    expected = losses(SFTTrainer(make_model(), SFTConfig(str(tmp_path / "in memory"), **arguments), **options))
    if exported:
        export_to_hub(ExportConfig(model=folder, output_dir=str(tmp_path / "exported")))
        folder, arguments["model_init_kwargs"] = str(tmp_path / "exported"), {"trust_remote_code": True}
    assert losses(SFTTrainer(folder, SFTConfig(str(tmp_path / "out"), **arguments), **options)) == expected


def test_dpo_loads_its_reference_by_itself(folder: str, tokenizer, tmp_path) -> None:
    """Before the first step model and reference agree, so that the loss is ln 2; training then separates them."""
    rows = [{"prompt": "plan window", "chosen": " slope bias mask", "rejected": " head score query"}] * 8
    arguments = DPOConfig(str(tmp_path / "out"), per_device_train_batch_size=8, **SETTINGS | {"learning_rate": 0.1})
    model = AutoModelForCausalLM.from_pretrained(folder)
    trainer = DPOTrainer(model, None, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    first, *_, last = losses(trainer)
    assert first == pytest.approx(math.log(2), rel=RELATIVE_TOLERANCE)
    assert last < first
