"""That Trainer's loss and gradient are the ones they should be, and Trainer itself in a user's hands."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.data.packing import PackedCollator
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer
from modeling_alibi_gpt.training.deterministic_trainer import DeterministicTrainer


VOCAB_SIZE = 40
EPS = torch.finfo(torch.float32).eps


def tiny_model(dtype: torch.dtype = torch.float32, **fields: Any) -> AlibiGPTForCausalLM:
    torch.manual_seed(0)
    config = AlibiGPTConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        **fields,
    )
    return AlibiGPTForCausalLM(config).to(dtype)


def random_blocks(*lengths: int) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(VOCAB_SIZE, (n,), generator=generator).tolist()} for n in lengths]


def true_loss(model: AlibiGPTForCausalLM, blocks: list[dict[str, list[int]]], label_smoothing: float = 0.0) -> Tensor:
    """Mean over all predicted tokens of the blocks, each alone, by nothing but logits."""
    nats, num_tokens = torch.zeros((), dtype=model.dtype), 0
    for block in blocks:
        ids = torch.tensor(block["input_ids"])
        logits = model(input_ids=ids[None]).logits[0, :-1]
        nats = nats + F.cross_entropy(logits, ids[1:], reduction="sum", label_smoothing=label_smoothing)
        num_tokens += len(ids) - 1
    return nats / num_tokens


def true_gradient(
    model: AlibiGPTForCausalLM, blocks: list[dict[str, list[int]]], label_smoothing: float
) -> tuple[float, Tensor]:
    loss = true_loss(model, blocks, label_smoothing)
    loss.backward()
    return loss.item(), flat_gradient(model)


def flat_gradient(model: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.grad.double().flatten() for parameter in model.parameters()])


def packed(documents: list[dict[str, list[int]]]) -> dict[str, list[int]]:
    return {
        "input_ids": [token for document in documents for token in document["input_ids"]],
        "position_ids": [position for document in documents for position in range(len(document["input_ids"]))],
    }


@pytest.mark.parametrize("num_batches", [1, 4])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("isolate_documents", [False, True])
def test_loss_and_gradient_are_those_of_the_sequences_one_by_one(
    tmp_path: Path, one_thread: None, isolate_documents: bool, label_smoothing: float, num_batches: int
) -> None:
    documents = random_blocks(11, 5, 16, 9, 3, 14, 7)
    blocks = documents[:4]
    if isolate_documents:
        blocks = [packed(documents[:2]), packed(documents[2:3]), packed(documents[3:5]), packed(documents[5:])]
    sequences = documents if isolate_documents else blocks
    exact_loss, exact_gradient = true_gradient(tiny_model(torch.float64), sequences, label_smoothing)
    plain_loss, plain_gradient = true_gradient(tiny_model(), sequences, label_smoothing)

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        per_device_train_batch_size=4 // num_batches,
        gradient_accumulation_steps=num_batches,
        label_smoothing_factor=label_smoothing,
        max_grad_norm=0.0,
        use_cpu=True,
        disable_tqdm=True,
    )
    seen = _GradientCallback()
    trainer = DeterministicTrainer(
        model=tiny_model(),
        args=arguments,
        data_collator=PackedCollator(pad_token_id=0),
        train_dataset=Dataset.from_list(blocks),
        callbacks=[seen],
    )
    trainer.train()
    # At most twice the error of plain float32, and rounding.
    loss_error, plain_error = abs(trainer.state.log_history[0]["loss"] - exact_loss), abs(plain_loss - exact_loss)
    assert loss_error <= 2 * plain_error + EPS * exact_loss
    gradient_error, plain_error = ((g - exact_gradient).abs().max() for g in (seen.gradient, plain_gradient))
    assert gradient_error <= 2 * plain_error + EPS * exact_gradient.abs().max()


class _GradientCallback(TrainerCallback):
    gradient: Tensor

    def on_pre_optimizer_step(self, *args: Any, model: torch.nn.Module, **kwargs: Any) -> None:
        self.gradient = flat_gradient(model)


@pytest.mark.parametrize(("num_blocks", "num_drawn"), [(14, 16), (16, 16), (3, 4)])
def test_an_epoch_is_whole_global_batches_with_every_block(tmp_path: Path, num_blocks: int, num_drawn: int) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2, use_cpu=True
    )
    blocks = Dataset.from_list([{"input_ids": [number] * 3} for number in range(num_blocks)])
    trainer = DeterministicTrainer(
        model=tiny_model(), args=arguments, data_collator=PackedCollator(pad_token_id=0), train_dataset=blocks
    )
    batches = [batch["input_ids"][:, 0].tolist() for batch in trainer.get_train_dataloader()]
    assert {len(batch) for batch in batches} == {2}
    drawn = [number for batch in batches for number in batch]
    assert len(drawn) == num_drawn
    assert set(drawn) == set(range(num_blocks))
    assert sorted(drawn[:num_blocks]) == list(range(num_blocks)), "each once before any twice"


def test_every_epoch_has_an_order_of_its_own(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=4, use_cpu=True)
    blocks = Dataset.from_list([{"input_ids": [number] * 3} for number in range(16)])
    trainer = DeterministicTrainer(
        model=tiny_model(), args=arguments, data_collator=PackedCollator(pad_token_id=0), train_dataset=blocks
    )
    loader = trainer.get_train_dataloader()
    first, second = ([n for batch in loader for n in batch["input_ids"][:, 0].tolist()] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second and list(range(16)) not in (first, second)


@pytest.mark.parametrize("kind", ["beta", "slopes"])
def test_weight_decay_spares_slopes(tmp_path: Path, kind: str) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), weight_decay=0.5, use_cpu=True)
    trainer = Trainer(model=tiny_model(alibi_trainable=kind), args=arguments)
    decay = {
        id(parameter): group["weight_decay"]
        for group in trainer.create_optimizer().param_groups
        for parameter in group["params"]
    }
    named = dict(trainer.model.named_parameters())
    assert decay[id(named.pop(f"model.position_method.bias_log_{kind}"))] == 0.0
    assert {decay[id(parameter)] for parameter in named.values() if parameter.ndim > 1} == {0.5}


def test_plain_trainer_trains_a_model_of_ours(tmp_path: Path, one_thread: None) -> None:
    texts = [f"the value of slope {number} is {number * number}" for number in range(40)]
    tokenizer = train_tokenizer(Dataset.from_dict({"text": texts}), 280)
    torch.manual_seed(0)
    model = AlibiGPTForCausalLM(
        AlibiGPTConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path), max_steps=20, logging_steps=1, learning_rate=1e-2, save_steps=10, use_cpu=True
        ),
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=Dataset.from_dict({"text": texts}).map(lambda row: tokenizer(row["text"])),
        eval_dataset=Dataset.from_dict(tokenizer(texts[:8])),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 1
    trainer.save_model(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([tokenizer(texts[0]).input_ids])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)
    straight = trainer.state.log_history[19]["loss"]
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert trainer.state.log_history[19]["loss"] == straight
