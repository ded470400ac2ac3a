"""The learning rate of positions: which parameters it is for, what it leaves alone, and that beta then gets there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.data.packing import PackedCollator
from modeling_alibi_gpt.training.deterministic_trainer import DeterministicTrainer
from modeling_alibi_gpt.training.optimizer import (
    learns_positions,
    position_parameters,
    set_position_learning_rate,
)
from modeling_alibi_gpt.training.preflight import check_experiment


LEARNED = {
    "beta": ({"alibi_trainable": "beta"}, ["bias_log_beta"]),
    "slopes": ({"alibi_trainable": "slopes"}, ["bias_log_slopes"]),
    "t5": ({"position_method": "t5"}, ["bucket_bias"]),
    "shared_offset": ({"position_method": "shared_offset"}, ["offset_bias"]),
    "kerple": ({"position_method": "kerple"}, ["bias_log_r1", "bias_log_r2"]),
    "fire": (
        {"position_method": "fire"},
        ["bias_log_c", "bias_log_threshold", "hidden_weight", "hidden_bias", "output_weight"],
    ),
}
NOTHING_LEARNED = [{}, *({"position_method": name} for name in ("learned", "sinusoidal", "rope", "sandwich", "none"))]
NUM_TOKENS = 12


def tiny_model(**fields: Any) -> AlibiGPTForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": NUM_TOKENS, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return AlibiGPTForCausalLM(AlibiGPTConfig(**{**sizes, "train_context_length": 32, **fields}))


def arguments(folder: Path, **values: Any) -> TrainingArguments:
    defaults = {"weight_decay": 0.1, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "seed": 0}
    return TrainingArguments(output_dir=str(folder), **{**defaults, **values})


def named_groups(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[tuple[list[str], float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        ([names[id(parameter)] for parameter in group["params"]], group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
    ]


@pytest.mark.parametrize(("fields", "names"), LEARNED.values(), ids=LEARNED)
def test_the_parameters_of_positions_move_into_groups_of_their_own(
    tmp_path: Path, fields: dict[str, Any], names: list[str]
) -> None:
    model = tiny_model(**fields)
    assert learns_positions(model.config)
    trainer = Trainer(model=model, args=arguments(tmp_path, learning_rate=1e-3))
    before = named_groups(trainer.create_optimizer(), model)
    set_position_learning_rate(trainer.create_optimizer(), model, 30.0)
    after = named_groups(trainer.create_optimizer(), model)
    expected = {f"model.position_method.{name}" for name in names}
    moved = [group for group in after if group[1] != 1e-3]
    assert {name for group in moved for name in group[0]} == expected
    assert {group[1:] for group in moved} == {(30 * 1e-3, 0.0)}
    for (kept, *settings), (all_names, *settings_before) in zip(after, before, strict=False):
        assert kept == [name for name in all_names if name not in expected]
        assert settings == settings_before


@pytest.mark.parametrize("fields", [*(fields for fields, _ in LEARNED.values()), *NOTHING_LEARNED], ids=str)
def test_at_one_the_optimizer_is_trainers_own(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = tiny_model(**fields)
    plain = Trainer(model=model, args=arguments(tmp_path)).create_optimizer()
    ours = DeterministicTrainer(model=model, args=arguments(tmp_path)).create_optimizer()
    assert named_groups(ours, model) == named_groups(plain, model)
    assert ours.state_dict() == plain.state_dict()


@pytest.mark.parametrize("fields", NOTHING_LEARNED, ids=str)
def test_where_nothing_learns_a_rate_is_refused(fields: dict[str, Any]) -> None:
    model = tiny_model(**fields)
    assert not position_parameters(model)
    assert not learns_positions(model.config)
    with pytest.raises(ValueError, match="position_learning_rate 30 would have no effect"):
        set_position_learning_rate(torch.optim.AdamW(model.parameters()), model, 30.0)


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.Adam])
@pytest.mark.parametrize("begin", ["step", "scheduler"])
def test_an_optimizer_that_began_is_refused(optimizer_class: type[torch.optim.Optimizer], begin: str) -> None:
    model = tiny_model(alibi_trainable="beta")
    optimizer = optimizer_class(model.parameters(), lr=1e-3)
    if begin == "step":
        model(torch.arange(4)[None])[0].sum().backward()
        optimizer.step()
    else:
        torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(ValueError, match="got one with a step or a scheduler"):
        set_position_learning_rate(optimizer, model, 30.0)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "adagrad", "rmsprop", "sgd"])
def test_every_new_optimizer_takes_a_rate(tmp_path: Path, optim: str) -> None:
    model = tiny_model(alibi_trainable="beta")
    optimizer = Trainer(model=model, args=arguments(tmp_path, learning_rate=1e-3, optim=optim)).create_optimizer()
    set_position_learning_rate(optimizer, model, 30.0)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [1e-3, 30 * 1e-3]


def test_the_callers_optimizer_is_refused_with_a_rate(tmp_path: Path) -> None:
    model = tiny_model(alibi_trainable="beta")
    given = {"model": model, "args": arguments(tmp_path), "optimizers": (torch.optim.AdamW(model.parameters()), None)}
    assert DeterministicTrainer(**given).create_optimizer() is given["optimizers"][0]
    with pytest.raises(ValueError, match="position_learning_rate 30 would have no effect on the optimizer that"):
        DeterministicTrainer(**given, position_learning_rate=30.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_rates_that_are_none_are_refused(make_experiment: Callable[..., Any], tmp_path: Path, rate: float) -> None:
    with pytest.raises(ValueError, match=r"position_learning_rate.* must be (above 0|a finite number)"):
        make_experiment(f"position_learning_rate={str(rate).replace('inf', '.inf').replace('nan', '.nan')}")
    with pytest.raises(ValueError, match="position_learning_rate must be a finite number above 0"):
        DeterministicTrainer(
            model=tiny_model(), args=arguments(tmp_path), position_learning_rate=rate
        ).create_optimizer()


def test_an_experiment_says_it_and_one_without_learned_positions_is_refused(
    make_experiment: Callable[..., Any],
) -> None:
    assert make_experiment().position_learning_rate == 1.0
    learned = make_experiment("position_learning_rate=30", "model.overrides.alibi_trainable=beta")
    check_experiment(learned)
    assert learned.position_learning_rate == 30.0
    with pytest.raises(ValueError, match="position_learning_rate 30 would have no effect"):
        check_experiment(make_experiment("position_learning_rate=30"))


def second_order_text(num_blocks: int) -> Dataset:
    """Each token is the sum of the two before it, modulo the vocabulary: nothing further back matters."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(NUM_TOKENS, (num_blocks, 32), generator=generator)
    for position in range(2, 32):
        blocks[:, position] = (blocks[:, position - 1] + blocks[:, position - 2]) % NUM_TOKENS
    return Dataset.from_dict({"input_ids": blocks.tolist()})


def trained(folder: Path, rate: float = 1.0, **fields: Any) -> tuple[float, float]:
    """The last loss, nats, and the beta of a training; both rates fall to 0."""
    torch.manual_seed(0)
    model = tiny_model(hidden_size=32, **fields)
    trainer = DeterministicTrainer(
        model=model,
        args=arguments(
            folder,
            learning_rate=5e-3,
            lr_scheduler_type="cosine",
            max_steps=200,
            logging_steps=20,
            per_device_train_batch_size=16,
        ),
        data_collator=PackedCollator(pad_token_id=0),
        train_dataset=second_order_text(512),
        position_learning_rate=rate,
    )
    trainer.train()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.0}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    log_beta = getattr(model.model.position_method, "bias_log_beta", torch.zeros(1))
    return losses[-1], log_beta.exp().item()


def test_a_beta_that_starts_at_one_reaches_a_better_one(tmp_path: Path, one_thread: None) -> None:
    fixed, _ = trained(tmp_path)
    steep, _ = trained(tmp_path, alibi_beta=8.0)
    slow, slow_beta = trained(tmp_path, alibi_trainable="beta")
    fast, fast_beta = trained(tmp_path, 30.0, alibi_trainable="beta")
    assert steep < fixed - 0.1, "there is a better one"
    assert slow_beta < 3, "200 steps of at most 0.005, half of that by the schedule"
    assert fast_beta > 2 * slow_beta
    assert fast < slow - 0.1
