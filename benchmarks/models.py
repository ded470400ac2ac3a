"""Whole models of one shape, with random weights: AlibiGPT beside BLOOM, MPT, Falcon and GPT-2 of transformers, and
with each of its position methods."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DynamicCache,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
)

from benchmarks.timing import extra_bytes, summarize, take_turns
from modeling_alibi_gpt.cache_alibi_gpt import AlibiWindowCache
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.modeling_alibi_gpt import AlibiGPTForCausalLM
from modeling_alibi_gpt.position_methods import POSITION_METHODS
from modeling_alibi_gpt.runtime.config import Count, config_dataclass
from modeling_alibi_gpt.runtime.records import Record


MODES = ("forward", "training_step")


@config_dataclass
class Shape:
    """Of a decoder whose MLP is four times as wide as its residual stream."""

    num_layers: Count = 4
    """Layers."""
    hidden_size: Count = 768
    """Width of the residual stream."""
    num_heads: Count = 12
    """Attention heads."""
    vocab_size: Count = 4096
    """Rows of the embedding."""


@config_dataclass
class ModelCase(Shape):
    """What is timed."""

    length_tokens: Annotated[int, Field(ge=2)]
    """Tokens of the text."""
    models: Annotated[list[str], Field(min_length=1)]
    """Keys of ``MODELS``; the first is the reference."""
    mode: Literal[*MODES] = "forward"
    """``forward`` or ``training_step``: forward, backward and no optimizer."""
    num_rounds: Count = 3
    """Turns each model takes."""

    def __post_init__(self) -> None:
        for model in self.models:
            if model not in MODELS:
                raise ValueError(f"models: expected {', '.join(MODELS)}, got {model!r}")


@config_dataclass
class DecodeCase(Shape):
    """What is timed: single tokens after a long text, `alibi_banded` with its cache against `sdpa`."""

    context_tokens: Count
    """Tokens in the cache."""
    num_rounds: Count = 20
    """Tokens decoded by each."""


def time_models(case: ModelCase, device: torch.device, seed: int = 0) -> Iterator[Record]:
    """``model_speed`` records, without their provenance."""
    torch.manual_seed(seed)
    models = {name: MODELS[name](case, case.length_tokens).to(device) for name in case.models}
    tokens = torch.randint(case.vocab_size, (1, case.length_tokens)).to(device)
    run = _training_step if case.mode == "training_step" else _forward
    contestants = {name: partial(run, model, tokens) for name, model in models.items()}
    memory = {name: extra_bytes(contestant) for name, contestant in contestants.items()}
    summary = summarize(take_turns(contestants, case.num_rounds), case.models[0])
    for name in case.models:
        yield {
            "kind": "model_speed",
            "name": name,
            "mode": case.mode,
            "dtype": "float32",
            "length_tokens": case.length_tokens,
            **describe_shape(case),
            **summary[name],
            "extra_bytes": memory[name],
        }


@torch.no_grad()
def time_decoding(case: DecodeCase, device: torch.device, seed: int = 0) -> Iterator[Record]:
    """``decode_speed`` records, without their provenance."""
    torch.manual_seed(seed)
    model = AlibiGPTForCausalLM(_alibi_config(case, qk_norm=True)).eval().to(device)
    prompt = torch.randint(case.vocab_size, (1, case.context_tokens)).to(device)
    token = prompt[:, -1:]
    caches = {"sdpa": DynamicCache(config=model.config), "alibi_banded": AlibiWindowCache.from_qk_norm(model)}
    logits = {}

    def decode(back_end: str) -> None:
        model.set_attn_implementation(back_end)
        logits[back_end] = model(token, past_key_values=caches[back_end]).logits

    for back_end, cache in caches.items():
        model.set_attn_implementation(back_end)
        model(prompt, past_key_values=cache, logits_to_keep=1)
    contestants = {name: partial(decode, name) for name in caches}
    summary = summarize(take_turns(contestants, case.num_rounds), "sdpa")
    num_bytes = {
        "sdpa": sum(layer.keys.nbytes + layer.values.nbytes for layer in caches["sdpa"].layers),
        "alibi_banded": caches["alibi_banded"].num_bytes,
    }
    for name in caches:
        yield {
            "kind": "decode_speed",
            "name": name,
            "dtype": "float32",
            "context_tokens": case.context_tokens,
            **describe_shape(case),
            **summary[name],
            "cache_bytes": num_bytes[name],
            "max_difference": (logits[name] - logits["sdpa"]).abs().max().item(),
        }


def describe_shape(shape: Shape) -> Record:
    """What a record says of a shape."""
    return {name: getattr(shape, name) for name in ("num_layers", "hidden_size", "num_heads", "vocab_size")}


@torch.no_grad()
def _forward(model: PreTrainedModel, tokens: Tensor) -> None:
    model.eval()(tokens, use_cache=False)


def _training_step(model: PreTrainedModel, tokens: Tensor) -> None:
    model.train().zero_grad()
    model(tokens, labels=tokens, use_cache=False).loss.backward()


def _alibi_config(shape: Shape, **fields: Any) -> AlibiGPTConfig:
    return AlibiGPTConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        **fields,
    )


def _make_alibi_gpt(shape: Shape, length_tokens: int, back_end: str) -> PreTrainedModel:
    model = AlibiGPTForCausalLM(_alibi_config(shape))
    model.set_attn_implementation(back_end)
    return model


def _make_method(method: str, shape: Shape, length_tokens: int) -> PreTrainedModel:
    return AlibiGPTForCausalLM(_alibi_config(shape, position_method=method, train_context_length=length_tokens))


def make_bloom(shape: Shape, length_tokens: int, **fields: Any) -> PreTrainedModel:
    """Of a shape, for texts of so many tokens, with other fields of its config."""
    return BloomForCausalLM(
        BloomConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            n_layer=shape.num_layers,
            n_head=shape.num_heads,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            **fields,
        )
    )


def make_mpt(shape: Shape, length_tokens: int, **fields: Any) -> PreTrainedModel:
    """Of a shape, for texts of so many tokens, with other fields of its config."""
    return MptForCausalLM(
        MptConfig(
            vocab_size=shape.vocab_size,
            d_model=shape.hidden_size,
            n_layers=shape.num_layers,
            n_heads=shape.num_heads,
            max_seq_len=length_tokens,
            **fields,
        )
    )


def make_falcon(shape: Shape, length_tokens: int, **fields: Any) -> PreTrainedModel:
    """Of a shape, for texts of so many tokens, with other fields of its config."""
    return FalconForCausalLM(
        FalconConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            alibi=True,
            multi_query=False,
            parallel_attn=False,
            bias=True,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            **fields,
        )
    )


def _make_gpt2(shape: Shape, length_tokens: int) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocab_size,
            n_embd=shape.hidden_size,
            n_layer=shape.num_layers,
            n_head=shape.num_heads,
            n_positions=length_tokens,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


MODELS: dict[str, Callable[[Shape, int], PreTrainedModel]] = {
    "alibi_gpt sdpa": lambda shape, length: _make_alibi_gpt(shape, length, "sdpa"),
    "alibi_gpt alibi_banded": lambda shape, length: _make_alibi_gpt(shape, length, "alibi_banded"),
    "gpt2": _make_gpt2,
    "bloom": make_bloom,
    "mpt": make_mpt,
    "falcon": make_falcon,
    **{f"{method} positions": partial(_make_method, method) for method in POSITION_METHODS},
}
