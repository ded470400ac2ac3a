"""Precision ``auto`` takes the faster one, changes nothing by measuring, and keeps to it after a kill."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.training import auto_precision as precision
from modeling_alibi_gpt.training import trainer
from modeling_alibi_gpt.training.auto_precision import faster_precision
from modeling_alibi_gpt.training.trainer import train


MakeExperiment = Callable[..., Any]


@pytest.fixture
def model() -> AlibiGPTForCausalLM:
    config = AlibiGPTConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        resid_pdrop=0.5,
        train_context_length=8,
    )
    return AlibiGPTForCausalLM(config)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.arange(16).reshape(2, 8)
    return {"input_ids": ids, "labels": ids}


def test_measuring_leaves_no_trace(model: AlibiGPTForCausalLM, batch: dict[str, torch.Tensor]) -> None:
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    result = faster_precision(model, batch)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert min(result["float32_step_seconds"], result["bfloat16_step_seconds"]) > 0


@pytest.mark.parametrize(("bfloat16_seconds", "expected"), [(0.5, "bfloat16"), (2.0, "float32"), (1.0, "float32")])
def test_the_faster_one_is_taken(
    model: AlibiGPTForCausalLM,
    batch: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    bfloat16_seconds: float,
    expected: str,
) -> None:
    calls = []

    def step_seconds(model: Any, inputs: Any, autocast: bool) -> float:
        calls.append(autocast)
        # The first step of each is a warm-up, and one slow step must not decide.
        return 100.0 if len(calls) in (1, 2, 5) else bfloat16_seconds if autocast else 1.0

    monkeypatch.setattr(precision, "_step_seconds", step_seconds)
    assert faster_precision(model, batch) == {
        "precision": expected,
        "float32_step_seconds": 1.0,
        "bfloat16_step_seconds": bfloat16_seconds,
    }
    assert calls == [False, True] * 4, "in turns"


def test_a_step_is_measured_in_the_precision_it_is_for(
    model: AlibiGPTForCausalLM, batch: dict[str, torch.Tensor]
) -> None:
    dtypes = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    faster_precision(model, batch)
    assert dtypes == [torch.float32, torch.bfloat16] * 4


def measured(choice: str) -> Callable[..., dict[str, Any]]:
    return lambda model, batch: {"precision": choice, "float32_step_seconds": 1.0, "bfloat16_step_seconds": 1.0}


@pytest.mark.parametrize("choice", ["float32", "bfloat16"])
def test_auto_trains_in_what_was_measured(
    make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    monkeypatch.setattr(trainer, "faster_precision", measured(choice))
    chosen = train(make_experiment("precision=auto"))
    named = train(make_experiment(f"precision={choice}", f"training.output_dir={tmp_path / 'named'}"))
    assert json.loads((tmp_path / "run" / "precision.json").read_text())["precision"] == choice
    for field in ("bf16", "loss_history", "validation_nats_per_token"):
        assert chosen[field] == named[field]


def test_a_step_is_measured_with_what_saves_memory(
    make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def faster(model: AlibiGPTForCausalLM, batch: dict[str, Any]) -> dict[str, Any]:
        counts = []
        hook = model.lm_head.register_forward_hook(
            lambda module, inputs, output: counts.append(output[..., 0].numel())
        )
        faster_precision(model, batch)
        hook.remove()
        seen.append((max(counts, default=0), model.is_activation_checkpointing))
        return measured("float32")(model, batch)

    monkeypatch.setattr(trainer, "faster_precision", faster)
    train(make_experiment("precision=auto", "loss_chunk_tokens=16", "training.gradient_checkpointing=true"))
    assert seen[0][0] <= 16 and seen[0][1]


def test_auto_measures_once_a_run(
    make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_experiment("precision=auto")
    monkeypatch.setattr(trainer, "faster_precision", measured("bfloat16"))
    with pytest.raises(KeyboardInterrupt):
        train(config, callbacks=[_Interruption()])
    monkeypatch.setattr(trainer, "faster_precision", lambda model, batch: pytest.fail("measured again"))
    record = train(config)
    assert (record["resumed_from"], record["bf16"]) == ("checkpoint-4", True)

    straight = make_experiment("precision=bfloat16", f"training.output_dir={tmp_path / 'straight'}")
    assert record["loss_history"] == train(straight)["loss_history"]


class _Interruption(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6:
            raise KeyboardInterrupt


class _InterruptionAtOnce(TrainerCallback):
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


def test_another_experiment_is_measured_anew(make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_experiment("precision=auto", "training.learning_rate=1.0")
    monkeypatch.setattr(trainer, "faster_precision", measured("bfloat16"))
    with pytest.raises(KeyboardInterrupt):
        train(config, callbacks=[_InterruptionAtOnce()])
    monkeypatch.setattr(trainer, "faster_precision", measured("float32"))
    repaired = dataclasses.replace(config, training={**config.training, "learning_rate": 1e-3})
    assert not train(repaired)["bf16"]
