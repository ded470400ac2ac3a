"""Memory of the language modeling loss, for all tokens at once and in chunks, each in its own process."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from benchmarks.timing import extra_bytes
from modeling_alibi_gpt.chunked_loss import chunked_causal_lm_loss
from modeling_alibi_gpt.runtime.records import Record, provenance


NUM_TOKENS, VOCAB_SIZE, HIDDEN_SIZE = 8192, 50257, 256
CHUNKS_TOKENS = (None, 1024)


def measure_loss_memory(num_tokens: int = NUM_TOKENS, vocab_size: int = VOCAB_SIZE) -> Iterator[Record]:
    """Yield ``loss_memory`` records. Both ways use the same inputs, so their losses are comparable."""
    for chunk_tokens in CHUNKS_TOKENS:
        command = [sys.executable, "-m", "benchmarks.loss_memory"]
        command += [json.dumps([num_tokens, vocab_size, chunk_tokens])]
        root = Path(__file__).resolve().parents[1]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        yield {**json.loads(done.stdout), "provenance": provenance(seed=0)}


def loss_memory(num_tokens: int, vocab_size: int, chunk_tokens: int | None) -> dict[str, Any]:
    """Return loss, gradient norm, and peak memory of both passes beyond hidden states and weights."""
    torch.manual_seed(0)
    hidden_states = torch.randn(1, num_tokens, HIDDEN_SIZE)
    head = nn.Linear(HIDDEN_SIZE, vocab_size, bias=False)
    labels = torch.randint(vocab_size, (1, num_tokens))
    losses = []

    def both_passes(states: Tensor, labels: Tensor) -> None:
        if chunk_tokens is None:
            loss = ForCausalLMLoss(head(states), labels, vocab_size)
        else:
            loss = chunked_causal_lm_loss(states, head, labels, chunk_tokens)
        loss.backward()
        losses.append(loss.item())

    both_passes(hidden_states[:, :8].clone().requires_grad_(), labels[:, :8])  # warm up imports and caches
    head.zero_grad()
    hidden_states.requires_grad_()
    num_bytes = extra_bytes(partial(both_passes, hidden_states, labels))
    return {
        "kind": "loss_memory",
        "num_tokens": num_tokens,
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN_SIZE,
        "dtype": "float32",
        "chunk_tokens": chunk_tokens,
        "logits_bytes": 4 * num_tokens * vocab_size,
        "extra_bytes": num_bytes,
        "nats_per_token": losses[1],
        "gradient_norm": nn.utils.get_total_norm([hidden_states.grad, head.weight.grad]).item(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(loss_memory(*json.loads(sys.argv[1]))))
