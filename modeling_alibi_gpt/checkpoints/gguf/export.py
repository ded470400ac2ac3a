"""Export an AlibiGPT checkpoint to a GGUF file of the MPT architecture, for llama.cpp and programs based on it."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from modeling_alibi_gpt.checkpoints.gguf.metadata import add_metadata
from modeling_alibi_gpt.checkpoints.gguf.tokenizer import add_tokenizer, check_tokenizer
from modeling_alibi_gpt.checkpoints.load import DTYPES, load_model_config, load_model_tokenizer
from modeling_alibi_gpt.checkpoints.source_weights import SourceWeights
from modeling_alibi_gpt.checkpoints.streaming import Step, plan_conversion
from modeling_alibi_gpt.checkpoints.weight_map import LM_HEAD, SAME, Rule
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.modeling_alibi_gpt import AlibiGPTForCausalLM
from modeling_alibi_gpt.runtime.atomic import atomic_file


# GGML's names for the dtype of matrices, and for a file with such matrices. Norms and biases are always float32.
_GGML_NAMES = {"float32": ("F32", "ALL_F32"), "float16": ("F16", "MOSTLY_F16"), "bfloat16": ("BF16", "MOSTLY_BF16")}
# The config values that match what the architecture computes. The order of slopes is the paper's for any number of
# heads. MPT uses exact GELU, but llama.cpp always computes its tanh approximation in float16.
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


def export_gguf(
    model: str | Path,
    output: str | Path,
    *,
    name: str | None = None,
    dtype: str = "float32",
    context_length_tokens: int | None = None,
) -> dict[str, Any]:
    """Write weights, configuration and tokenizer of a checkpoint to one GGUF file.

    Tensors are read and written one by one, so a checkpoint may be larger than memory.

    Args:
        model: Checkpoint folder with its tokenizer.
        output: GGUF file to write; an existing file is replaced.
        name: Display name of the model; None uses the name in the model card, or the name of the folder.
        dtype: Dtype of the matrices: ``float32``, ``float16`` or ``bfloat16``.
        context_length_tokens: Maximum text length that programs assume, although ALiBi has no limit: llama-server
            refuses a longer text, and llama.cpp reserves a cache of this size by default. None uses
            ``train_context_length``.

    Returns:
        ``output``, and ``num_tensors`` and ``num_bytes`` of the file.

    Raises:
        ValueError: The folder does not contain an AlibiGPT and its tokenizer, the MPT architecture does not support
            its config, llama.cpp does not support its tokenizer, an argument is out of range, a weight overflows in
            the dtype, or the package ``gguf`` is not installed.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if context_length_tokens is not None and context_length_tokens < 1:
        raise ValueError(f"context_length_tokens must be at least 1, got {context_length_tokens}")
    gguf = _import_gguf()
    folder, file, model_config = Path(model), Path(output), load_model_config(model)
    if model_config.model_type != "alibi_gpt":
        raise ValueError(f"{folder} contains a model of type {model_config.model_type}, expected alibi_gpt")
    check_config(model_config)
    tokenizer = load_model_tokenizer(folder)
    check_tokenizer(tokenizer)
    source, num_parameters = _whole_weights(folder, model_config)
    steps = list(mpt_tensors(model_config))
    with atomic_file(file) as tmp_path, closing(gguf.GGUFWriter(tmp_path, "mpt")) as writer:
        add_metadata(writer, folder, name, num_parameters)
        _add_config(writer, model_config, context_length_tokens or model_config.train_context_length)
        add_tokenizer(writer, tokenizer, model_config.vocab_size)
        _write(writer, steps, source, dtype)
    return {"output": str(file), "num_tensors": len(steps), "num_bytes": file.stat().st_size}


def check_config(config: AlibiGPTConfig) -> None:
    """Raise a ValueError that names every config field that the MPT architecture does not support."""
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
        raise ValueError(
            f"the MPT architecture of GGUF does not support this model: {', '.join(wrong)}; it supports models "
            "trained with configs/model/servable_mpt.json"
        )


def mpt_tensors(config: AlibiGPTConfig) -> Iterator[Step]:
    """Every tensor of the MPT architecture with its source weights; queries, keys and values are fused."""
    if not config.tie_word_embeddings:
        yield _step("output.weight", LM_HEAD)
    yield _step("token_embd.weight", "embed_tokens.weight")
    for kind in ("weight", "bias") if config.use_bias else ("weight",):
        yield _step(f"output_norm.{kind}", f"norm.{kind}")
        for layer in range(config.num_hidden_layers):
            ours, theirs = f"layers.{layer}", f"blk.{layer}"
            yield _step(f"{theirs}.attn_qkv.{kind}", *(f"{ours}.self_attn.{name}_proj.{kind}" for name in "qkv"))
            for name, their_name in _LAYER_NAMES.items():
                yield _step(f"{theirs}.{their_name}.{kind}", f"{ours}.{name}.{kind}")


def _step(target: str, *sources: str) -> Step:
    return Step(sources, (target,), lambda tensors: [tensors[0] if len(tensors) == 1 else torch.cat(tuple(tensors))])


def _whole_weights(folder: Path, config: AlibiGPTConfig) -> tuple[SourceWeights, int]:
    """The weights of a folder and the number of parameters, after checking that names and shapes match the config."""
    with torch.device("meta"):
        model = AlibiGPTForCausalLM(config)
    prefix, tied = f"{model.base_model_prefix}.", config.tie_word_embeddings
    source = SourceWeights(folder, model.base_model_prefix)
    names = [name.removeprefix(prefix) for name in model.state_dict() if name != LM_HEAD]
    plan_conversion(source, model, [Rule((name,), (name,), SAME) for name in names], to_ours=True, tied=tied)
    return source, model.num_parameters()


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ValueError("GGUF files need the package gguf: pip install 'alibi-gpt[convert]'") from error
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


def _write(writer: Any, steps: Sequence[Step], source: SourceWeights, dtype_name: str) -> None:
    """Write the header, then one tensor after the other."""
    from gguf import GGMLQuantizationType, LlamaFileType

    dtype, (ggml_name, file_type) = DTYPES[dtype_name], _GGML_NAMES[dtype_name]
    writer.add_file_type(LlamaFileType[file_type])
    for step in steps:
        (tensor,) = step.run(source.describe)
        stored, kind = (dtype, ggml_name) if tensor.ndim == 2 else (torch.float32, "F32")
        num_bytes = tensor.numel() * stored.itemsize
        # numpy has no bfloat16, but its dtype is ignored if GGML's is given.
        args = (tuple(tensor.shape), np.dtype(np.float32), num_bytes, GGMLQuantizationType[kind])
        writer.add_tensor_info(step.targets[0], *args)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for step in tqdm(steps, desc="writing", unit="tensor", disable=None):
        writer.write_tensor_data(_stored(step, source, dtype).numpy())


def _stored(step: Step, source: SourceWeights, dtype: torch.dtype) -> Tensor:
    """The tensor as stored in the file; bfloat16 is viewed as bytes, because numpy does not support it."""
    (tensor,) = step.run(source.read)
    made = tensor.to(dtype if tensor.ndim == 2 else torch.float32)
    if not made.isfinite().all():
        expected = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{step.targets[0]} has weights up to {tensor.abs().max():g}, which are not finite in {expected}"
        )
    return made.view(torch.uint8) if made.dtype == torch.bfloat16 else made
