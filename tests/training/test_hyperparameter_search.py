"""The recipe of docs/beta.md: plain ``Trainer.hyperparameter_search`` tunes beta with Optuna."""

from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.data.packing import PackedCollator


BETAS = [0.01, 0.3, 10.0]


@pytest.fixture
def task(tmp_path: Path, one_thread: None) -> dict[str, Any]:
    """What Trainer needs beside a model: squares to go on with."""
    blocks = Dataset.from_list([{"input_ids": [(start + i) ** 2 % 31 for i in range(32)]} for start in range(24)])
    return {
        "args": TrainingArguments(output_dir=str(tmp_path), max_steps=8, learning_rate=1e-2, use_cpu=True),
        "data_collator": PackedCollator(pad_token_id=0),
        "train_dataset": blocks,
        "eval_dataset": blocks.select(range(8)),
    }


def make_model(beta: float) -> AlibiGPTForCausalLM:
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return AlibiGPTForCausalLM(AlibiGPTConfig(alibi_beta=beta, **sizes))


def test_search_finds_the_beta_with_the_lowest_loss(task: dict[str, Any]) -> None:
    def model_init(trial: optuna.Trial | None = None) -> AlibiGPTForCausalLM:
        # Here and not in hp_space, which Trainer calls only after it has built the model.
        return make_model(trial.suggest_float("alibi_beta", 0.01, 10.0, log=True) if trial else 1.0)

    trainer = Trainer(model_init=model_init, **task)
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {},
        backend="optuna",
        direction="minimize",
        n_trials=len(BETAS),
        sampler=optuna.samplers.GridSampler({"alibi_beta": BETAS}),
    )

    losses = {}
    for beta in BETAS:
        alone = Trainer(model_init=partial(make_model, beta), **task)
        alone.train()
        losses[beta] = alone.evaluate()["eval_loss"]
    assert len(set(losses.values())) == len(BETAS), "beta must matter here, or the test shows nothing"
    assert best.objective == min(losses.values())
    assert best.hyperparameters == {"alibi_beta": min(losses, key=losses.__getitem__)}
