"""FSDP2 on CPU processes, by the model's own plan, trains what one process does; its checkpoint loads in one.

Tied embeddings need more than the plan of transformers 5.23, which trains Llama wrongly from the second step on:
docs/fsdp2-tied-embeddings.md.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM


pytestmark = pytest.mark.integrations
NUM_STEPS = 4  # a head that no step updates shows in the loss of the second
GLOBAL_BATCH = 4
LENGTH = 24
LEARNING_RATE = 0.1
# A loss is a mean of 4 x 23 terms of one sign, summed in another order; in bfloat16 what counts is that logits are
# rounded once more where a product sums in another order.
LOSS_TOLERANCE = {"float32": 2 * GLOBAL_BATCH * (LENGTH - 1) * torch.finfo(torch.float32).eps, "bfloat16": 2**-7}
# The promise for float32 gradients, times what the learning rate and the steps make of it; or one unit in the last
# place of a weight between 1 and 2 in every step, where rounding went the other way.
WEIGHT_TOLERANCE = {"float32": NUM_STEPS * LEARNING_RATE * 1e-5, "bfloat16": NUM_STEPS * 2**-7}


def draw_batches() -> torch.Tensor:
    """Tokens ``(steps, global batch, length)``."""
    return torch.randint(0, 61, (NUM_STEPS, GLOBAL_BATCH, LENGTH), generator=torch.Generator().manual_seed(1))


def train(folder: Path, dtype: str, output_dir: Path) -> list[float]:
    """Train the checkpoint in as many processes as there are and save it; returns the loss of every step."""
    num_processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    fsdp_size = min(num_processes, 2)
    tp_size = num_processes // fsdp_size
    layout = DistributedConfig(fsdp_size=fsdp_size, tp_size=tp_size)
    options = {"distributed_config": layout} if num_processes > 1 else {}
    model = AlibiGPTForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    assert all(isinstance(weight, DTensor) for weight in model.parameters()) == (num_processes > 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, foreach=False)  # parameters of several meshes
    losses = []
    for batch in draw_batches():
        mine = batch.chunk(fsdp_size)[rank // tp_size]
        loss = model(mine, labels=mine).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach()
        if num_processes > 1:
            dist.all_reduce(total)
        losses.append(total.item() / num_processes)
    model.save_pretrained(output_dir)
    return losses


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("trainable", "dtype", "num_processes"),
    [("none", "float32", 2), ("slopes", "float32", 2), ("slopes", "bfloat16", 2), ("none", "float32", 4)],
    ids=["fsdp", "fsdp-slopes", "fsdp-slopes-bfloat16", "fsdp-and-tensor-parallel"],
)
def test_processes_train_and_save_what_one_does(
    tmp_path: Path, trainable: str, dtype: str, num_processes: int, tied: bool
) -> None:
    """Slopes stay float32 in a bfloat16 model, which makes the position method a shard of its own."""
    torch.manual_seed(0)
    config = AlibiGPTConfig(
        vocab_size=61,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=0.2,
        alibi_trainable=trainable,
        tie_word_embeddings=tied,
    )
    start = AlibiGPTForCausalLM(config)
    start.save_pretrained(tmp_path / "start")
    folders = {name: str(tmp_path / name) for name in ("start", "one", "two")}
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        + [str(num_processes), __file__, folders["start"], dtype, folders["two"]],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    losses = train(tmp_path / "start", dtype, tmp_path / "one")
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(losses, rel=LOSS_TOLERANCE[dtype])

    one, two = (AlibiGPTForCausalLM.from_pretrained(folders[name], dtype=dtype) for name in ("one", "two"))
    for (name, weight), expected, before in zip(
        two.named_parameters(), one.parameters(), start.parameters(), strict=True
    ):
        assert weight.dtype == (torch.float32 if "bias_log" in name else getattr(torch, dtype))
        torch.testing.assert_close(weight, expected, rtol=0.0, atol=WEIGHT_TOLERANCE[dtype], msg=name)
        assert not torch.equal(weight, before.to(weight.dtype)) or name.endswith("k_proj.bias"), name
    batch = draw_batches()[0]
    with torch.no_grad():
        losses = [model(batch, labels=batch).loss.item() for model in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=LOSS_TOLERANCE[dtype])


if __name__ == "__main__":
    measured = train(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    if dist.get_rank() == 0:
        print(json.dumps(measured), flush=True)
    dist.barrier()
    dist.destroy_process_group()
