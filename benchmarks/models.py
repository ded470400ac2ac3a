"""Times whole models of one shape with random weights: AlibiGPT with each position method, and BLOOM, MPT, Falcon and
GPT-2 of transformers."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Cache, DynamicCache, PreTrainedModel

from benchmarks.timing import extra_bytes, summarize, time_interleaved
from modeling_alibi_gpt.cache_alibi_gpt import AlibiWindowCache
from modeling_alibi_gpt.cache_argument import cache_name
from modeling_alibi_gpt.position_methods import POSITION_METHODS
from modeling_alibi_gpt.runtime.config import Count, config_dataclass
from modeling_alibi_gpt.runtime.records import Record


MODES = ("forward", "training_step")


@config_dataclass
class Shape:
    """Shape of a decoder whose MLP is four times as wide as its residual stream."""

    num_layers: Count = 4
    """Number of layers."""
    hidden_size: Count = 768
    """Width of the residual stream."""
    num_heads: Count = 12
    """Number of attention heads."""
    vocab_size: Count = 4096
    """Vocabulary size."""


@config_dataclass
class ModelCase(Shape):
    """Models to time."""

    length_tokens: Annotated[int, Field(ge=2)]
    """Text length in tokens."""
    models: Annotated[list[str], Field(min_length=1)]
    """``gpt2``, ``bloom``, ``mpt``, ``falcon``, ``alibi_gpt sdpa``, ``alibi_gpt sdpa compiled``,
    ``alibi_gpt alibi_banded``, or a position method such as ``rope positions``. The first is the reference.
    """
    mode: Literal[*MODES] = "forward"
    """``forward``, or ``training_step``: forward and backward without an optimizer step."""
    num_rounds: Count = 3
    """Number of timed runs of each model."""

    def __post_init__(self) -> None:
        for model in self.models:
            if model not in MODELS:
                raise ValueError(f"models: expected {', '.join(MODELS)}, got {model!r}")


@config_dataclass
class DecodeCase(Shape):
    """Decoding to time: single tokens after a long text, ``alibi_banded`` with its cache against ``sdpa``."""

    context_tokens: Count
    """Number of tokens in the cache."""
    num_rounds: Count = 20
    """Number of tokens that each decodes."""


def time_models(case: ModelCase, device: torch.device, seed: int = 0) -> Iterator[Record]:
    """Yield ``model_speed`` records without provenance."""
    torch.manual_seed(seed)
    models = {name: MODELS[name](case, case.length_tokens).to(device) for name in case.models}
    tokens = torch.randint(case.vocab_size, (1, case.length_tokens)).to(device)
    run = _training_step if case.mode == "training_step" else _forward
    candidates = {name: partial(run, model, tokens) for name, model in models.items()}
    memory = {name: extra_bytes(candidate) for name, candidate in candidates.items()}
    summary = summarize(time_interleaved(candidates, case.num_rounds), case.models[0])
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


def time_decoding(case: DecodeCase, device: torch.device, seed: int = 0) -> Iterator[Record]:
    """Yield ``decode_speed`` records without provenance."""
    torch.manual_seed(seed)
    make = partial(make_model, "alibi_gpt", case, case.context_tokens, qk_norm=True)
    models = {name: make(attn_implementation=name).to(device) for name in ("sdpa", "alibi_banded")}
    prompt = torch.randint(case.vocab_size, (1, case.context_tokens)).to(device)
    for name, figures in decoding_figures(models, prompt, case.num_rounds).items():
        yield {
            "kind": "decode_speed",
            "name": name,
            "dtype": "float32",
            "context_tokens": case.context_tokens,
            **describe_shape(case),
            **figures,
        }


@torch.no_grad()
def decoding_figures(models: Mapping[str, PreTrainedModel], prompt: Tensor, num_rounds: int) -> dict[str, Record]:
    """Time decoding of single tokens after a prompt. ``alibi_banded`` gets its own cache and the weights of ``sdpa``.

    Args:
        models: ``sdpa`` and ``alibi_banded``, two back ends of an AlibiGPT with QK norm, and any others.
        prompt: ``(1, Q)``.
        num_rounds: Number of tokens that each decodes.

    Returns:
        By name: the times relative to ``sdpa``, ``cache_bytes``, and ``max_difference``, the largest difference of
        logits from those of ``sdpa``.
    """
    models["alibi_banded"].load_state_dict(models["sdpa"].state_dict())
    caches: dict[str, Cache] = {name: DynamicCache(config=model.eval().config) for name, model in models.items()}
    caches["alibi_banded"] = AlibiWindowCache.from_qk_norm(models["alibi_banded"])
    cached = {name: {cache_name(model): caches[name]} for name, model in models.items()}
    logits = {}

    def decode(name: str) -> None:
        logits[name] = models[name](prompt[:, -1:], **cached[name]).logits

    for name, model in models.items():
        model(prompt, **cached[name], logits_to_keep=1)
    summary = summarize(time_interleaved({name: partial(decode, name) for name in models}, num_rounds), "sdpa")
    return {
        name: {
            **figures,
            "cache_bytes": _cache_bytes(caches[name]),
            "max_difference": (logits[name] - logits["sdpa"]).abs().max().item(),
        }
        for name, figures in summary.items()
    }


def describe_shape(shape: Shape) -> Record:
    """Fields of a record that describe a shape."""
    return {name: getattr(shape, name) for name in ("num_layers", "hidden_size", "num_heads", "vocab_size")}


@torch.no_grad()
def _forward(model: PreTrainedModel, tokens: Tensor) -> None:
    model.eval()(tokens, use_cache=False)


def _training_step(model: PreTrainedModel, tokens: Tensor) -> None:
    model.train().zero_grad()
    model(tokens, labels=tokens, use_cache=False).loss.backward()


def _cache_bytes(cache: Cache) -> int:
    """Size of the keys and values in a cache."""
    if isinstance(cache, AlibiWindowCache):
        return cache.num_bytes
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


# Config fields of each family besides its shape: no dropout, and ALiBi where it is optional.
_FAMILY_FIELDS: dict[str, dict[str, Any]] = {
    "alibi_gpt": {},
    "bloom": {"hidden_dropout": 0.0, "attention_dropout": 0.0},
    "falcon": {
        **{"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
        **{"hidden_dropout": 0.0, "attention_dropout": 0.0},
    },
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {"tie_word_embeddings": True},
    "mpt": {},
}
_LENGTH_FIELDS = {"alibi_gpt": "train_context_length", "gpt2": "n_positions", "mpt": "max_seq_len"}


def make_model(family: str, shape: Shape, length_tokens: int, **fields: Any) -> PreTrainedModel:
    """Make a model of a family with random float32 weights.

    Args:
        family: A key of ``_FAMILY_FIELDS``, which is the model type in transformers.
        shape: Sizes of the model. Llama's MLP has three matrices and is narrower, to match the number of weights.
        length_tokens: Longest text, for families that limit it.
        fields: Other fields of its config.
    """
    if family == "llama":
        fields["intermediate_size"] = shape.hidden_size * 8 // 3 // 64 * 64 or 64
    if family in _LENGTH_FIELDS:
        fields[_LENGTH_FIELDS[family]] = length_tokens
    config = AutoConfig.for_model(
        family,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        **_FAMILY_FIELDS[family],
        **fields,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


def make_compiled_model(shape: Shape, length_tokens: int) -> PreTrainedModel:
    """AlibiGPT on ``sdpa``, compiled by its first call, which is not timed."""
    model = make_model("alibi_gpt", shape, length_tokens, attn_implementation="sdpa")
    model.compile()
    return model


MODELS: dict[str, Callable[[Shape, int], PreTrainedModel]] = {
    "alibi_gpt sdpa compiled": make_compiled_model,
    **{
        f"alibi_gpt {back_end}": partial(make_model, "alibi_gpt", attn_implementation=back_end)
        for back_end in ("sdpa", "alibi_banded")
    },
    **{family: partial(make_model, family) for family in ("gpt2", "bloom", "mpt", "falcon")},
    **{f"{method} positions": partial(make_model, "alibi_gpt", position_method=method) for method in POSITION_METHODS},
}
