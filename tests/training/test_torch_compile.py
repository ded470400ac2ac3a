"""A compiled training is the training: ``torch_compile: true`` from the command to the saved model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from modeling_alibi_gpt.training.trainer import train


pytestmark = pytest.mark.slow
NUM_STEPS, LEARNING_RATE = 4, 1e-2
SETTINGS = [
    *(f"model.config.{name}=0.0" for name in ("embd_pdrop", "resid_pdrop", "attention_dropout")),
    *(f"training.max_steps={NUM_STEPS}", "training.logging_steps=1", "training.save_strategy=no"),
    "training.optim=sgd",  # Adam makes a whole step of a gradient that is all rounding
]
# A mean of 4 x 31 terms of one sign in another order; logits that fused kernels round otherwise, by a promise of 1e-5
# for activations of about 1.
LOSS_TOLERANCE = 2 * 124 * torch.finfo(torch.float32).eps
WEIGHT_TOLERANCE = NUM_STEPS * LEARNING_RATE * 1e-5  # the promise for gradients, times what steps make of it


@pytest.mark.parametrize("more", [[], ["loss_chunk_tokens=50"]], ids=["whole-loss", "chunked-loss"])
def test_compiled_training_is_training(make_experiment: Any, tmp_path: Path, more: list[str]) -> None:
    records = {}
    for name, compiled in (("eager", "false"), ("compiled", "true")):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        folder = tmp_path / name
        settings = [*SETTINGS, *more, f"training.torch_compile={compiled}", f"training.output_dir={folder}"]
        records[name] = train(make_experiment(*settings))
        assert bool(torch._dynamo.utils.counters["frames"]) == (compiled == "true")
    eager, compiled = ([entry["nats_per_token"] for entry in records[name]["loss_history"]] for name in records)
    assert len(set(eager)) == NUM_STEPS
    assert compiled == pytest.approx(eager, rel=LOSS_TOLERANCE)
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in records]
    for name, weight in models[1].items():
        torch.testing.assert_close(weight, models[0][name], rtol=0.0, atol=WEIGHT_TOLERANCE, msg=name)
