"""Overhead of the framework: training with the package's Trainer against a plain loop over a GPT of the same shape."""

import tempfile
from collections.abc import Iterator
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from pydantic import Field
from torch import Tensor, nn
from transformers import TrainingArguments

from benchmarks.models import Shape, describe_shape
from benchmarks.timing import summarize, time_interleaved
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.data.packing import PackedCollator
from modeling_alibi_gpt.modeling_alibi_gpt import AlibiGPTForCausalLM
from modeling_alibi_gpt.runtime.config import Count, config_dataclass
from modeling_alibi_gpt.runtime.records import Record
from modeling_alibi_gpt.training.deterministic_trainer import DeterministicTrainer


LEARNING_RATE, WEIGHT_DECAY, BETAS, MAX_GRAD_NORM = 1e-3, 0.1, (0.9, 0.95), 1.0


@config_dataclass
class LoopCase(Shape):
    """Training to time: the same number of optimizer steps on the same tokens."""

    length_tokens: Annotated[int, Field(ge=2)]
    """Tokens per sequence."""
    batch_size: Count
    """Sequences per step."""
    num_steps: Count = 20
    """Optimizer steps per run."""
    num_rounds: Count = 5
    """Number of timed runs of each."""


def time_loops(case: LoopCase, device: torch.device, seed: int = 0) -> Iterator[Record]:
    """Yield ``model_speed`` records without provenance; the plain loop is the reference."""
    torch.manual_seed(seed)
    tokens = torch.randint(case.vocab_size, (case.num_steps * case.batch_size, case.length_tokens))
    plain, ours = PlainGPT(case).to(device), make_model(case)
    candidates = {
        "plain loop": lambda: plain_loop(plain, tokens, case),
        "alibi_gpt trainer": lambda: trainer_loop(ours, tokens, case, device),
    }
    summary = summarize(time_interleaved(candidates, case.num_rounds), "plain loop")
    num_tokens = tokens.numel()
    for name, figures in summary.items():
        yield {
            "kind": "model_speed",
            "name": name,
            "mode": "training_loop",
            "dtype": "float32",
            "length_tokens": case.length_tokens,
            "num_rows": case.batch_size,
            **describe_shape(case),
            **figures,
            "tokens_per_second": num_tokens / figures["seconds"],
            "extra_bytes": None,
        }


def make_model(case: LoopCase) -> AlibiGPTForCausalLM:
    """AlibiGPT of the given shape with default settings, except for dropout, which the plain model lacks."""
    config = AlibiGPTConfig(
        vocab_size=case.vocab_size,
        hidden_size=case.hidden_size,
        num_hidden_layers=case.num_layers,
        num_attention_heads=case.num_heads,
        train_context_length=case.length_tokens,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attention_dropout=0.0,
    )
    return AlibiGPTForCausalLM(config)


def trainer_loop(model: AlibiGPTForCausalLM, tokens: Tensor, case: LoopCase, device: torch.device) -> None:
    """Run all steps with ``DeterministicTrainer``, including its setup."""
    rows = Dataset.from_dict({"input_ids": tokens.tolist()})
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=case.num_steps,
            per_device_train_batch_size=case.batch_size,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            adam_beta2=BETAS[1],
            max_grad_norm=MAX_GRAD_NORM,
            optim="adamw_torch_fused",
            logging_steps=case.num_steps,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=device.type == "cpu",
        )
        trainer = DeterministicTrainer(
            model=model, args=arguments, data_collator=PackedCollator(0), train_dataset=rows
        )
        trainer.train()


def plain_loop(model: "PlainGPT", tokens: Tensor, case: LoopCase) -> None:
    """Run all steps in plain PyTorch. The loss is read once at the end, as in the Trainer."""
    device = model.embed.weight.device
    matrices, vectors = [], []
    for parameter in model.parameters():
        (matrices if parameter.ndim > 1 else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)
    total: Any = 0.0
    for batch in tokens.split(case.batch_size):
        loss = model(batch.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total = total + loss.detach()
    assert total.isfinite()


class PlainGPT(nn.Module):
    """A GPT with learned positions, fused QKV projections, PyTorch's causal attention and tied embeddings."""

    def __init__(self, case: LoopCase) -> None:
        super().__init__()
        self.embed = nn.Embedding(case.vocab_size, case.hidden_size)
        self.positions = nn.Embedding(case.length_tokens, case.hidden_size)
        self.layers = nn.ModuleList([PlainLayer(case) for _ in range(case.num_layers)])
        self.norm = nn.LayerNorm(case.hidden_size)
        for embedding in (self.embed, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mean next-token loss of ``(B, T)`` in nats."""
        states = self.embed(tokens) + self.positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            states = layer(states)
        logits = F.linear(self.norm(states), self.embed.weight)
        targets = F.pad(tokens, (0, 1), value=-100)[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class PlainLayer(nn.Module):
    """Attention and MLP."""

    def __init__(self, case: LoopCase) -> None:
        super().__init__()
        self.num_heads, size = case.num_heads, case.hidden_size
        self.norms = nn.ModuleList([nn.LayerNorm(size), nn.LayerNorm(size)])
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, states: Tensor) -> Tensor:
        heads = (*states.shape[:2], self.num_heads, -1)
        query, key, value = (part.view(heads).transpose(1, 2) for part in self.qkv(self.norms[0](states)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        states = states + self.out(attended.transpose(1, 2).flatten(2))
        return states + self.down(F.gelu(self.up(self.norms[1](states)), approximate="tanh"))
