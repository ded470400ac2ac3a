"""Scoring gives the loss of plain calls, whatever the chunks, batches and processes, and stays within its memory."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
)

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.evaluation import scoring
from modeling_alibi_gpt.evaluation.scoring import MAX_TENSOR_BYTES, plan_calls, score_stream
from tests.support.scoring_reference import context_start, reference_nats


ROOT = Path(__file__).resolve().parents[2]
VOCAB_SIZE = 61


def alibi_gpt(**fields) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return AlibiGPTForCausalLM(AlibiGPTConfig(**sizes, initializer_range=0.2, train_context_length=32, **fields))


def llama(**fields) -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCAB_SIZE, **sizes, max_position_embeddings=8, initializer_range=0.2, **fields)
    )


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "alibi": alibi_gpt,
    "alibi_eager": lambda: alibi_gpt(attn_implementation="eager"),
    "alibi_dynamic": lambda: alibi_gpt(alibi_scaling={"type": "dynamic_ntk"}),
    "alibi_slopes": lambda: alibi_gpt(alibi_trainable="slopes", num_key_value_heads=2),
    "learned": lambda: alibi_gpt(position_method="learned"),
    "rope": lambda: alibi_gpt(position_method="rope"),
    "sinusoidal": lambda: alibi_gpt(position_method="sinusoidal"),
    "none": lambda: alibi_gpt(position_method="none"),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=32, initializer_range=0.2)
    ),
    "llama": llama,
    "llama_dynamic": lambda: llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    ),
    "mpt": lambda: MptForCausalLM(MptConfig(vocab_size=VOCAB_SIZE, d_model=32, n_layers=2, n_heads=4, max_seq_len=32)),
    "falcon": lambda: FalconForCausalLM(
        FalconConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True)
    ),
}


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(VOCAB_SIZE, (75,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize("name", MODELS)
def test_chunks_and_batches_give_the_loss_of_plain_calls(name: str, stride: int | None, ids: Tensor):
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    expected, largest_logit = reference_nats(model, ids, 16, stride)
    # The model computes in float64, so all that differs is the cast of the logits to float32: half an ulp each for
    # the target's logit and those under the logarithm, and as much again for the sum, the difference and the result.
    tolerance = 4 * torch.finfo(torch.float32).eps * max(1.0, largest_logit)
    for batch_tokens in (4096, 40, 16, 5, 1):
        scores = score_stream(
            model,
            ids,
            length_tokens=16,
            protocol="nonoverlapping" if stride is None else "sliding",
            stride_tokens=stride,
            batch_tokens=batch_tokens,
        )
        np.testing.assert_allclose(scores.token_nats, expected.numpy(), rtol=0, atol=tolerance)


def test_scores_sum_by_window_and_by_position(ids: Tensor):
    scores = score_stream(alibi_gpt(), ids, length_tokens=16, protocol="sliding", stride_tokens=5)
    nats, counts = np.zeros(16), np.zeros(16, dtype=int)
    for i, loss in enumerate(scores.token_nats):
        position = i - context_start(i, len(ids) - 1, 16, 5)
        nats[position] += loss
        counts[position] += 1
    np.testing.assert_allclose(scores.position_nats, nats, rtol=1e-14)
    np.testing.assert_array_equal(scores.position_num_tokens, counts)
    assert scores.window_num_tokens.tolist() == [16, *[5] * 11, 3]
    np.testing.assert_allclose(scores.window_nats.sum(), scores.token_nats.sum(), rtol=1e-14)


def test_scoring_leaves_the_model_as_it_was(ids: Tensor):
    model = alibi_gpt(resid_pdrop=0.5).train()
    first, second = (score_stream(model, ids, length_tokens=16, protocol="nonoverlapping") for _ in range(2))
    np.testing.assert_array_equal(first.token_nats, second.token_nats)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("num_processes", [2, 3, 40])
def test_processes_share_the_batches_and_sum_to_the_same(num_processes: int, ids: Tensor, monkeypatch):
    torch.manual_seed(0)
    model = alibi_gpt()
    settings = {"length_tokens": 8, "protocol": "sliding", "stride_tokens": 4, "batch_tokens": 16}
    alone = score_stream(model, ids, **settings)
    total = np.zeros_like(alone.token_nats)
    monkeypatch.setattr(scoring, "reduce", lambda tensor, reduction: tensor)
    for index in range(num_processes):
        state = SimpleNamespace(
            process_index=index, num_processes=num_processes, device=torch.device("cpu"), is_main_process=index == 0
        )
        monkeypatch.setattr(scoring, "process_state", lambda state=state: state)
        total += score_stream(model, ids, **settings).token_nats
    np.testing.assert_array_equal(total, alone.token_nats)


@pytest.mark.parametrize("num_heads", [1, 12, 32])
@pytest.mark.parametrize("vocab_size", [256, 50257])
def test_logits_and_attention_stay_within_the_budget(num_heads: int, vocab_size: int):
    config = AlibiGPTConfig(vocab_size=vocab_size, num_attention_heads=num_heads, hidden_size=64 * num_heads)
    for length in (1, 100, 1024, 16384, 131072):
        for batch_tokens in (1, 1000, 16384, 10**6):
            batch_size, chunk = plan_calls(config, length, batch_tokens)
            assert 1 <= chunk <= length
            assert batch_size == 1 or chunk == length
            assert batch_size * chunk <= max(1, batch_tokens)
            assert 4 * batch_size * chunk * max(vocab_size, num_heads * length) <= MAX_TENSOR_BYTES


def test_a_table_that_ends_is_named(ids: Tensor):
    with pytest.raises(ValueError, match="learned positions end at train_context_length = 32"):
        score_stream(MODELS["learned"](), ids, length_tokens=33, protocol="nonoverlapping")
    with pytest.raises(ValueError, match="index 32 is beyond the model's table of 32 rows"):
        score_stream(MODELS["gpt2"](), ids, length_tokens=33, protocol="nonoverlapping")


ONE_PROCESS_FAILS = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from modeling_alibi_gpt.evaluation.scoring import score_stream

model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1, n_positions=8))
ids = torch.tensor([1] * 17 + [8])  # only the last batch, which one process has, holds the token that does not exist
try:
    score_stream(model, ids, length_tokens=4, protocol="nonoverlapping", batch_tokens=4)
except ValueError as error:
    print(f"refused: {error}", flush=True)
"""


@pytest.mark.slow
def test_a_failure_in_one_process_ends_all(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(ONE_PROCESS_FAILS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", str(program)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert done.stdout.count("refused: ") == 2


LONG_WINDOW = """
import resource
import torch
from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.evaluation.scoring import score_stream

torch.manual_seed(0)
model = AlibiGPTForCausalLM(AlibiGPTConfig(num_hidden_layers=2))
ids = torch.randint(model.config.vocab_size, (16385,))
scores = score_stream(model, ids, length_tokens=16384, protocol="nonoverlapping")
assert len(scores.token_nats) == 16384
print(scores.token_nats.mean(), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_16k_window_with_a_50k_vocabulary_stays_below_4_gb():
    done = subprocess.run(
        [sys.executable, "-c", LONG_WINDOW], cwd=ROOT, capture_output=True, text=True, check=True, timeout=900
    )
    nats_per_token, peak_bytes = map(float, done.stdout.split())
    # A model that knows nothing pays log(V) and the half variance of its logits, 0.02 ** 2 * 768 at the start.
    assert nats_per_token == pytest.approx(math.log(50257) + 0.5 * 0.02**2 * 768, abs=0.05)
    assert peak_bytes < 4e9
