"""The figures that a training adds to its log: formula, clock, and that TensorBoard gets them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback, TrainerState

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.training import milestones, trainer
from modeling_alibi_gpt.training.deterministic_trainer import DeterministicTrainer
from modeling_alibi_gpt.training.throughput import (
    BFLOAT16_PEAK_FLOPS,
    ThroughputCallback,
    known_peak_flops,
    training_flops_per_token,
)
from modeling_alibi_gpt.training.trainer import train


def make_model(**fields: Any) -> AlibiGPTForCausalLM:
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    return AlibiGPTForCausalLM(AlibiGPTConfig(**sizes, **fields))


def test_flops_of_a_token_are_those_of_palm() -> None:
    tied, untied = make_model(), make_model(tie_word_embeddings=False)
    assert untied.num_parameters() == tied.num_parameters() + 100 * 32
    for model in (tied, untied):
        assert training_flops_per_token(model, 50) == 6 * tied.num_parameters() + 12 * 3 * 4 * 8 * 50
    # The paper's own model: 540 billion parameters, 118 layers, 48 heads of size 256, 2,048 tokens.
    parts = {"num_hidden_layers": 118, "num_attention_heads": 48, "head_dim": 256}
    palm = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(**parts)),
        num_parameters=lambda: 540e9,
        get_input_embeddings=lambda: SimpleNamespace(weight=0),
        get_output_embeddings=lambda: SimpleNamespace(weight=0),
    )
    # Table 3: 238.3 thousand tokens a second on 6,144 chips of 275 TFLOP/s are 46.2 % with attention.
    assert 238.3e3 * training_flops_per_token(palm, 2048) / (6144 * 275e12) == pytest.approx(0.462, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("Another", None),
    ],
)
def test_peaks_of_known_gpus(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert known_peak_flops(torch.device("cuda"), bf16=True) == peak
    assert known_peak_flops(torch.device("cuda"), bf16=False) is None
    assert known_peak_flops(torch.device("cpu"), bf16=True) is None
    assert min(BFLOAT16_PEAK_FLOPS.values()) > 1e14


def test_evaluations_and_checkpoints_do_not_count() -> None:
    """Two steps of 3 s and 5 s, an evaluation and a checkpoint of 100 s each; then one step of 2 s."""
    now = 50.0
    model = make_model()
    callback = ThroughputCallback(model, 1e6, lambda step: 16 if step < 1 else 32, clock=lambda: now)
    args = SimpleNamespace(world_size=2, n_gpu=0, device=torch.device("cpu"))
    state = TrainerState(max_steps=10)
    callback.on_train_begin(args, state, None)
    logs = []
    for seconds in (3, 5, 2):
        now += seconds
        state.global_step += 1
        state.num_input_tokens_seen += 64
        callback.on_step_end(args, state, None)
        if state.global_step >= 2:
            logs.append({"loss": 1.0})
            callback.on_log(args, state, None, logs[-1], model=model)
            now += 100
            callback.on_evaluate(args, state, None)
            now += 100
            callback.on_save(args, state, None)
    short, long = (training_flops_per_token(model, length) for length in (16, 32))
    assert [entry["tokens_per_second"] for entry in logs] == [128 / 8, 64 / 2]
    assert [entry["eta_seconds"] for entry in logs] == [4 * 8, 2 * 7]
    assert logs[0]["mfu"] == pytest.approx(64 * (short + long) / 8 / 2e6)
    assert logs[1]["mfu"] == pytest.approx(64 * long / 2 / 2e6)
    assert 0.01 < logs[0]["memory_gib"] < 100
    other = {"eval_loss": 1.0}
    callback.on_log(args, state, None, other, model=model)
    assert other == {"eval_loss": 1.0}


def test_only_steps_count_in_a_whole_training(make_experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take 2 s; milestones before, between and at logs, evaluations and checkpoints take 100 s each."""
    now = 0.0

    def delayed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal now
            now += 100
            return function(*args, **kwargs)

        return call

    class Steps(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            nonlocal now
            now += 2

        def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:
                logged.append((logs["tokens_per_second"], logs["eta_seconds"]))

    logged: list[tuple[float, float]] = []
    for owner, name in (
        (milestones, "score_stream"),
        (DeterministicTrainer, "evaluation_loop"),
        (DeterministicTrainer, "_save_checkpoint"),
    ):
        monkeypatch.setattr(owner, name, delayed(getattr(owner, name)))
    monkeypatch.setattr(trainer, "ThroughputCallback", partial(ThroughputCallback, clock=lambda: now))
    settings = ["milestones.steps=[0,1,4,5]", "milestones.lengths_tokens=[32]", "training.eval_strategy=steps"]
    settings += ["training.eval_steps=3", "training.max_steps=8", "training.eval_on_start=true"]
    train(make_experiment(*settings), callbacks=[Steps()])
    assert logged == [(4 * 32 / 2, seconds) for seconds in (12, 8, 4, 0)]
    assert now > 1000


def test_tensorboard_gets_every_figure(make_experiment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    settings = ["training.report_to=[tensorboard]", "model.config.alibi_trainable=beta", "position_learning_rate=30"]
    train(make_experiment(*settings, "peak_flops=1e12", "training.max_steps=4", "training.logging_steps=2"))
    [folder] = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
    events = EventAccumulator(str(folder)).Reload()
    names = ("tokens_per_second", "mfu", "memory_gib", "eta_seconds", "grad_norm", "beta_layer_0", "beta_layer_1")
    figures = {name: [event.value for event in events.Scalars(f"train/{name}")] for name in names}
    assert all(len(values) == 2 for values in figures.values())
    assert figures["eta_seconds"][0] > 0 == figures["eta_seconds"][1]
    assert 0 < figures["mfu"][0] < 1
    assert figures["beta_layer_0"][0] != figures["beta_layer_1"][1] != 1.0


def test_what_does_not_learn_or_is_not_known_is_not_logged(make_experiment: Any, capsys: Any) -> None:
    train(make_experiment("training.max_steps=2"))
    logged = capsys.readouterr().out
    assert "tokens/s" in logged and "MFU" not in logged and "beta" not in logged
