"""An AlibiGPT checkpoint as one GGUF file of the MPT architecture, which llama.cpp and what is built on it run."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.conversion.gguf_tokenizer import add_tokenizer, check_tokenizer
from modeling_alibi_gpt.evaluation.checkpoints import load_causal_lm, load_model_config, load_model_tokenizer


# Dtypes of matrices, and GGML's names for them and for a file of them. Norms and biases are float32 in every file.
DTYPES = {
    "float32": (torch.float32, "F32", "ALL_F32"),
    "float16": (torch.float16, "F16", "MOSTLY_F16"),
    "bfloat16": (torch.bfloat16, "BF16", "MOSTLY_BF16"),
}
# What the architecture computes, where AlibiGPT has a choice; the order of slopes is the paper's for any number of
# heads. MPT's GELU is the exact one, and llama.cpp computes its tanh approximation in float16 whatever the file says.
_MPT_CHOICES: dict[str, tuple[Any, ...]] = {
    "position_method": ("alibi",),
    "alibi_beta": (1.0,),
    "alibi_slope_kind": ("geometric",),
    "alibi_trainable": ("none",),
    "alibi_scaling": (None,),
    "alibi_bias_inside_scaling": (False,),
    "hidden_act": ("gelu", "gelu_new", "gelu_pytorch_tanh"),
    "embedding_layer_norm": (False,),
    "qk_norm": (False,),
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GgufConfig:
    """What becomes a GGUF file, and how.

    Attributes:
        model: Checkpoint folder, with its tokenizer.
        output: GGUF file to write; one that is there is replaced.
        dtype: Of the matrices: ``float32``, ``float16`` or ``bfloat16``.
        context_length_tokens: What readers take for the longest text: llama-server refuses a longer one, and
            llama.cpp reserves a cache of this size unless told otherwise. ALiBi itself has no such limit. None means
            ``train_context_length``.
    """

    model: str
    output: str
    dtype: str = "float32"
    context_length_tokens: int | None = None


def export_gguf(config: GgufConfig) -> dict[str, Any]:
    """Write weights, configuration and tokenizer of a checkpoint into one GGUF file.

    Returns:
        ``output``, and ``num_tensors`` and ``num_bytes`` of the file.

    Raises:
        ValueError: The folder holds no AlibiGPT with its tokenizer, the MPT architecture cannot compute what its
            config says, llama.cpp cannot tokenize as its tokenizer does, a weight does not fit into the dtype, or
            the package ``gguf`` is not installed.
    """
    if config.dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {config.dtype!r}")
    if config.context_length_tokens is not None and config.context_length_tokens < 1:
        raise ValueError(f"context_length_tokens must be at least 1, got {config.context_length_tokens}")
    gguf = _import_gguf()
    model_config = load_model_config(config.model)
    if model_config.model_type != "alibi_gpt":
        raise ValueError(f"{config.model} holds a {model_config.model_type}, expected an alibi_gpt")
    check_config(model_config)
    tokenizer = load_model_tokenizer(config.model)
    check_tokenizer(tokenizer)
    tensors = dict(mpt_tensors(load_causal_lm(config.model)))

    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    writer = gguf.GGUFWriter(beside, "mpt")
    _add_config(writer, model_config, config.context_length_tokens or model_config.train_context_length)
    add_tokenizer(writer, tokenizer, model_config.vocab_size)
    _add_tensors(writer, tensors, config.dtype)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(beside, output)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return {"output": str(output), "num_tensors": len(tensors), "num_bytes": output.stat().st_size}


def check_config(config: AlibiGPTConfig) -> None:
    """Raise a ValueError that names every field in which the model differs from what the MPT architecture computes."""
    choices = _MPT_CHOICES | {
        "head_dim": (config.hidden_size / config.num_attention_heads,),
        "attention_scale": (None, config.head_dim**-0.5),
    }
    wrong = [
        f"{name} = {getattr(config, name)!r} (expected {' or '.join(f'{value}' for value in accepted)})"
        for name, accepted in choices.items()
        if getattr(config, name) not in accepted
    ]
    if wrong:
        raise ValueError(f"the MPT architecture of GGUF cannot hold this model: {', '.join(wrong)}")


def mpt_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a causal AlibiGPT under its name in the MPT architecture, queries, keys and values as one."""
    weights = dict(model.state_dict())
    head = weights.pop("lm_head.weight")
    if not model.config.tie_word_embeddings:
        yield "output.weight", head
    yield "token_embd.weight", weights.pop("model.embed_tokens.weight")
    for kind in ("weight", "bias") if model.config.use_bias else ("weight",):
        yield f"output_norm.{kind}", weights.pop(f"model.norm.{kind}")
        for layer in range(model.config.num_hidden_layers):
            ours = f"model.layers.{layer}"
            projections = [weights.pop(f"{ours}.self_attn.{name}_proj.{kind}") for name in "qkv"]
            yield f"blk.{layer}.attn_qkv.{kind}", torch.cat(projections)
            for name, theirs in _LAYER_NAMES.items():
                yield f"blk.{layer}.{theirs}.{kind}", weights.pop(f"{ours}.{name}.{kind}")
    assert not weights, f"weights without a place in the file: {', '.join(weights)}"


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ValueError("GGUF files need the package gguf: pip install 'alibi-gpt[gguf]'") from error
    return gguf


def _add_config(writer: Any, config: AlibiGPTConfig, context_length_tokens: int) -> None:
    writer.add_context_length(context_length_tokens)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_max_alibi_bias(config.alibi_bias_max)
    if config.clip_qkv is not None:
        writer.add_clamp_kqv(config.clip_qkv)


def _add_tensors(writer: Any, tensors: dict[str, Tensor], dtype_name: str) -> None:
    from gguf import GGMLQuantizationType, LlamaFileType

    dtype, ggml_name, file_type = DTYPES[dtype_name]
    writer.add_file_type(LlamaFileType[file_type])
    for name, tensor in tensors.items():
        is_matrix = tensor.ndim == 2
        stored = tensor.to(dtype if is_matrix else torch.float32)
        if not stored.isfinite().all():
            raise ValueError(f"{name} has weights up to {tensor.abs().max():g}, expected finite ones in {dtype_name}")
        # numpy has no bfloat16: bytes say the same.
        data = stored.contiguous().view(torch.uint8) if stored.dtype == torch.bfloat16 else stored
        writer.add_tensor(name, data.numpy(), raw_dtype=GGMLQuantizationType[ggml_name if is_matrix else "F32"])
