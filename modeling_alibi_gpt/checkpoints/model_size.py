"""Compute the size of a model from its config: shapes and number of its weights, and whether they fit into memory.

No model is built, so this works for a config of any size.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.position_methods import POSITION_METHODS


Shape = tuple[int, ...]

FLOAT32_BYTES = 4
TRAINING_BYTES = 8  # a float32 weight and its gradient, without optimizer state
POSITION_PREFIX = "model.position_method."
_LAYER_PREFIX = "model.layers."
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


@dataclass(frozen=True)
class WeightShapes:
    """Shapes of the weights of an ``AlibiGPTForCausalLM``, by their names in its state dict.

    A tied output layer is not counted as a weight.

    Attributes:
        shared: Shapes of the weights outside the layers.
        layer: Shapes of the weights of one layer, by the part of the name after its number.
        num_layers: Number of layers.
    """

    shared: dict[str, Shape]
    layer: dict[str, Shape]
    num_layers: int

    @property
    def num_parameters(self) -> int:
        return _num_elements(self.shared) + self.num_layers * _num_elements(self.layer)

    @property
    def num_tensors(self) -> int:
        return len(self.shared) + self.num_layers * len(self.layer)

    def names(self) -> Iterator[str]:
        """All names, lazily, because there may be more than fit into memory."""
        yield from self.shared
        for index in range(self.num_layers):
            for name in self.layer:
                yield f"{_LAYER_PREFIX}{index}.{name}"

    def get(self, name: str) -> Shape | None:
        """The shape of one weight; None if the model has no such weight."""
        if not name.startswith(_LAYER_PREFIX):
            return self.shared.get(name)
        index, _, in_layer = name.removeprefix(_LAYER_PREFIX).partition(".")
        is_layer = index.isascii() and index.isdigit() and len(index) < 20 and int(index) < self.num_layers
        return self.layer.get(in_layer) if is_layer else None


def weight_shapes(config: AlibiGPTConfig) -> WeightShapes:
    """Shapes of all weights of a causal language model with this config."""
    hidden, mlp = config.hidden_size, config.intermediate_size
    queries, keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    layer = {
        **_norm("input_layernorm", config),
        **_linear("self_attn.q_proj", queries, hidden, config),
        **_linear("self_attn.k_proj", keys, hidden, config),
        **_linear("self_attn.v_proj", keys, hidden, config),
        **_linear("self_attn.o_proj", hidden, queries, config),
        **_norm("post_attention_layernorm", config),
        **_linear("mlp.up_proj", mlp, hidden, config),
        **_linear("mlp.down_proj", hidden, mlp, config),
        **{f"mlp.act_fn.{name}": tuple(p.shape) for name, p in ACT2FN[config.hidden_act].named_parameters()},
    }
    if config.qk_norm:
        layer |= dict.fromkeys(("self_attn.q_norm.weight", "self_attn.k_norm.weight"), (config.head_dim,))
    positions = POSITION_METHODS[config.position_method].parameter_shapes(config)
    shared: dict[str, Shape] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        **(_norm("model.embedding_norm", config) if config.embedding_layer_norm else {}),
        **{f"{POSITION_PREFIX}{name}": shape for name, shape in positions.items()},
        **_norm("model.norm", config),
        **({} if config.tie_word_embeddings else {"lm_head.weight": (config.vocab_size, hidden)}),
    }
    return WeightShapes(shared=shared, layer=layer, num_layers=config.num_hidden_layers)


def num_parameters(config: PreTrainedConfig) -> int:
    """Number of parameters of a causal language model with this config, exact for an AlibiGPT.

    For another family, this is a lower bound: an embedding, and one square matrix per layer.
    """
    if isinstance(config, AlibiGPTConfig):
        return weight_shapes(config).num_parameters
    config = config.get_text_config()
    num_layers, hidden, vocab_size = (
        getattr(config, name, 0) or 0 for name in ("num_hidden_layers", "hidden_size", "vocab_size")
    )
    return vocab_size * hidden + num_layers * hidden**2


def memory_bytes() -> int:
    """Memory of this machine, or the limit of this container, plus the memory of its GPUs."""
    total = psutil.virtual_memory().total
    limit = _CGROUP_LIMIT.read_text(encoding="ascii").strip() if _CGROUP_LIMIT.is_file() else "max"
    if limit.isdigit():
        total = min(total, int(limit))
    if torch.cuda.is_available():
        total += sum(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    return total


def check_memory(needed_bytes: int, what: str) -> None:
    """Raise a ValueError with the needed and the available memory, unless ``what`` fits."""
    if needed_bytes > (available := memory_bytes()):
        raise ValueError(
            f"{what} need {format_bytes(needed_bytes)} of memory, but only {format_bytes(available)} exist"
        )


def check_model_memory(config: PreTrainedConfig, bytes_per_parameter: int = FLOAT32_BYTES) -> None:
    """Raise a ValueError unless the parameters of a model fit into memory.

    Args:
        config: Config of the model.
        bytes_per_parameter: Bytes per parameter, such as ``TRAINING_BYTES`` for training in float32.
    """
    total, kind = num_parameters(config), "parameters with gradients"
    kind = kind if bytes_per_parameter == TRAINING_BYTES else "parameters"
    check_memory(total * bytes_per_parameter, f"the {total:,} {kind} of this model ({_sizes(config)})")


def format_bytes(num_bytes: int) -> str:
    """Format a number of bytes, as in ``1.5 GiB``."""
    power = min(max(num_bytes.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{num_bytes:,} bytes" if not power else f"{num_bytes / 1024**power:,.1f} {_UNITS[power]}"


def _sizes(config: PreTrainedConfig) -> str:
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = config.get_text_config()
    return ", ".join(f"{name} {value}" for name in names if (value := getattr(config, name, None)) is not None)


def _norm(name: str, config: AlibiGPTConfig) -> dict[str, Shape]:
    return {f"{name}.{kind}": (config.hidden_size,) for kind in _kinds(config)}


def _linear(name: str, num_out: int, num_in: int, config: AlibiGPTConfig) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {"weight": (num_out, num_in), "bias": (num_out,)}
    return {f"{name}.{kind}": shapes[kind] for kind in _kinds(config)}


def _kinds(config: AlibiGPTConfig) -> tuple[str, ...]:
    return ("weight", "bias") if config.use_bias else ("weight",)


def _num_elements(shapes: dict[str, Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
