"""Tensor parallelism on two CPU processes, by the model's own plan, computes and learns what one process does."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig

from modeling_alibi_gpt import AlibiGPTForCausalLM
from modeling_alibi_gpt.tensor_parallel import HeadParallel
from tests.support.exact_cases import BATCHES, make_model


TOLERANCE = 1e-10  # float64, as in the exactness matrix
TOLERANCE_FLOAT32 = torch.finfo(torch.float32).eps  # rounding of gradients below one, where a parameter stays float32
NUM_NEW_TOKENS = 12
# Six query heads and two key heads, so that a rank has three and one; 61 tokens do not divide by two.
CASES = (
    *("alibi", "alibi_inside", "alibi_custom", "alibi_ntk", "alibi_dynamic_ntk"),
    *("alibi_trained_beta", "alibi_trained_slopes", "alibi_trained_slopes_dynamic"),
    *("sinusoidal", "learned", "rope", "none", "qk_norm", "no_bias", "untied"),
    *("rope_yarn", "t5", "shared_offset", "kerple", "kerple_power", "fire", "fire_shared", "sandwich"),
)


def make_whole(case: str) -> AlibiGPTForCausalLM:
    return make_model(case, "eager", torch.float64, num_key_value_heads=2)


@functools.cache
def errors_of_two_processes(folder: Path) -> dict[str, dict[str, float]]:
    """Case -> what was compared -> largest difference from the model in one piece."""
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, folder],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_two_processes_compute_what_one_does(case: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    errors = errors_of_two_processes(tmp_path_factory.getbasetemp())[case]
    assert {"logits", "padded", "new_tokens", "grad model.layers.1.self_attn.q_proj.weight"} <= errors.keys()
    assert errors["new_tokens"] == 0
    for name, error in errors.items():
        assert error <= (TOLERANCE_FLOAT32 if stays_float32(case, name) else TOLERANCE), name


def stays_float32(case: str, name: str) -> bool:
    return "position_method" in name and case != "learned"


def test_heads_that_cannot_be_split_evenly_are_refused() -> None:
    class Mesh:
        def size(self) -> int:
            return 2

    with pytest.raises(ValueError, match=r"num_key_value_heads \(3\) must be a multiple of tp_size \(2\)"):
        HeadParallel().install_forward(make_model("alibi").model.position_method, Mesh())


def compare(case: str, folder: Path) -> dict[str, float]:
    """Largest differences between the sharded model and the whole one, in one of the processes."""
    whole = make_whole(case)
    if dist.get_rank() == 0:
        whole.save_pretrained(folder)
    dist.barrier()
    split = AlibiGPTForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", distributed_config=DistributedConfig(tp_size=2)
    )
    assert split.model.layers[0].self_attn.q_proj.weight.to_local().shape[0] == 3 * whole.config.head_dim
    errors = {
        "logits": max_difference(*(model(BATCHES["packed"].token_ids).logits for model in (split, whole))),
        "padded": max_difference(*map(padded_logits, (split, whole))),
        "new_tokens": max_difference(*map(generate, (split, whole))),
    }
    for model in (split, whole):
        accumulate_gradients(model)
    for (name, parameter), expected in zip(split.named_parameters(), whole.parameters(), strict=True):
        gradient = parameter.grad
        gradient = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        errors[f"grad {name}"] = max_difference(gradient, expected.grad)
    return errors


def padded_logits(model: PreTrainedModel) -> torch.Tensor:
    batch = BATCHES["left"]
    return model(batch.token_ids, attention_mask=batch.visible).logits[batch.visible.bool()]


def generate(model: PreTrainedModel) -> torch.Tensor:
    batch = BATCHES["left"]
    settings = {"max_new_tokens": NUM_NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    return model.generate(batch.token_ids, attention_mask=batch.visible, **settings)


def accumulate_gradients(model: PreTrainedModel) -> None:
    """Two micro-batches, whose gradients add up; the weights of heads meet gradients of other ranks."""
    for layout in ("whole", "packed"):
        batch = BATCHES[layout]
        model(batch.token_ids, position_ids=batch.position_ids, labels=batch.token_ids).loss.backward()


def max_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return (actual - expected).abs().max().item()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    measured = {case: compare(case, Path(sys.argv[1]) / case) for case in CASES}
    if dist.get_rank() == 0:
        print(json.dumps(measured), flush=True)
    dist.barrier()
    dist.destroy_process_group()
