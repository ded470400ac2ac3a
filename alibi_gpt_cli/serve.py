"""``alibi-gpt serve``."""

import functools
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer


if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# The cache holds this many requests of this many tokens, or of twice the training length if that is more.
NUM_REQUESTS = 16
REQUEST_TOKENS = 2048
# At startup transformers allocates a mask of (batch, cache + batch) numbers: 1.3 GB for its batch of 8,192 tokens and
# this cache.
BATCH_TOKENS = 512
# Share of the free memory for the cache.
MEMORY_SHARE = 0.5


def serve(context: typer.Context) -> None:
    """Serve a model with an OpenAI-compatible API: 'transformers serve' with AlibiGPT registered.

    Accepts the options that 'transformers serve --help' lists. Needs the extra 'serve'. On a CPU,
    --continuous-batching chooses --cb-num-blocks and --cb-max-batch-tokens unless you set --cb-num-blocks or
    --cb-max-memory-percent.

    alibi-gpt serve runs/demo/alibi --continuous-batching
    """
    import transformers
    from transformers.cli.transformers import app
    from transformers.utils.import_utils import is_serve_available

    from modeling_alibi_gpt import AlibiGPTForCausalLM

    if not is_serve_available():
        raise ValueError("serving needs packages that are not installed: pip install 'alibi-gpt[serve]'")
    # `serve` looks up the class of a checkpoint among the attributes of transformers, not in its Auto classes.
    transformers.AlibiGPTForCausalLM = AlibiGPTForCausalLM  # type: ignore[attr-defined]
    command = app.commands["serve"]
    start = command.callback
    command.callback = lambda **options: start(**_prepared(options))  # type: ignore[misc]
    try:
        app(["serve", *context.args])
    finally:
        command.callback = start


def _prepared(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the sizes of cache and batches; a named model without a chat template is announced."""
    sizes = _batching_options(options)
    if options["force_model"] is not None and not has_chat_template(options["force_model"]):
        print(
            "the model has no chat template: ask /v1/completions; /v1/chat/completions answers with an error",
            file=sys.stderr,
        )
    return {**options, **sizes}


def has_chat_template(model: str) -> bool:
    """Whether the files of ``model`` have a chat template; a GGUF file is not opened, and counts as having one.

    Args:
        model: A folder or a name on the Hub, with an optional ``@revision`` and ``:FILE.gguf``.

    Raises:
        ValueError: ``tokenizer_config.json`` cannot be read; the message names it.
    """
    from transformers.utils import cached_file

    from modeling_alibi_gpt.runtime.parsing import read_mapping

    name, revision, gguf_file = _split(model)
    if gguf_file is not None:
        return True
    found = functools.partial(cached_file, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    if any(found(file) for file in ("chat_template.jinja", "chat_template.json")):
        return True
    settings = found("tokenizer_config.json")
    return settings is not None and bool(read_mapping(settings).get("chat_template"))


def _split(model: str) -> tuple[str, str, str | None]:
    """Name, revision and GGUF file of a served model."""
    from transformers.cli.serving.utils import split_model_id

    path, gguf_file = split_model_id(model)
    # A folder has no revision, and its name may contain an "@"; transformers reads it so from 5.24 on.
    name, _, revision = (path, "", "") if os.path.exists(path) else path.partition("@")
    return name, revision or "main", gguf_file


def _batching_options(options: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of cache and batches on a CPU, unless the options of 'transformers serve' set that of the cache.

    On a GPU the choice is left to transformers, which uses most of the GPU's free memory for the cache.
    """
    import psutil
    import torch
    from transformers import AutoConfig, ContinuousBatchingConfig

    on_cpu = options["device"] == "cpu" or (options["device"] == "auto" and not torch.accelerator.is_available())
    is_sized = options["cb_num_blocks"] is not None or options["cb_max_memory_percent"] is not None
    if not (options["continuous_batching"] and on_cpu) or is_sized:
        return {}
    if options["force_model"] is None:
        raise ValueError("the cache needs a size if no model is named: use alibi-gpt serve MODEL or --cb-num-blocks N")
    name, revision, gguf_file = _split(options["force_model"])
    config = AutoConfig.from_pretrained(
        name, revision=revision, gguf_file=gguf_file, trust_remote_code=options["trust_remote_code"]
    )
    dtype = config.dtype if options["dtype"] in ("auto", None) else getattr(torch, options["dtype"], None)
    block_tokens = options["cb_block_size"] or ContinuousBatchingConfig().page_size
    batch_tokens = options["cb_max_batch_tokens"] or BATCH_TOKENS
    block_bytes = block_tokens * bytes_per_token(config, (dtype or torch.float32).itemsize, batch_tokens)
    num_blocks = choose_num_blocks(config, block_tokens, block_bytes, psutil.virtual_memory().available)
    print(
        f"continuous batching: --cb-num-blocks {num_blocks} (of {block_tokens} tokens), --cb-max-batch-tokens "
        f"{batch_tokens}; at most {num_blocks * block_bytes / 2**30:.2f} GiB",
        file=sys.stderr,
    )
    return {"cb_num_blocks": num_blocks, "cb_max_batch_tokens": batch_tokens}


def choose_num_blocks(config: "PreTrainedConfig", block_tokens: int, block_bytes: int, free_bytes: int) -> int:
    """Blocks for ``NUM_REQUESTS`` long requests, or as many as fit into ``MEMORY_SHARE`` of the free memory.

    Raises:
        ValueError: Not even one block fits.
    """
    longest = max(REQUEST_TOKENS, 2 * getattr(config, "train_context_length", 0))
    wanted = NUM_REQUESTS * -(-longest // block_tokens)
    affordable = int(MEMORY_SHARE * free_bytes) // block_bytes
    if affordable < 1:
        raise ValueError(
            f"got {free_bytes / 2**20:.0f} MiB of free memory; expected at least "
            f"{block_bytes / MEMORY_SHARE / 2**20:.0f} MiB, for one cache block of {block_tokens} tokens"
        )
    return min(wanted, affordable)


def bytes_per_token(config: "PreTrainedConfig", value_bytes: int, batch_tokens: int) -> int:
    """Bytes per token: cached keys and values, a copy of one layer's for all heads, and a column of the mask."""
    num_heads = config.num_attention_heads
    num_cached = getattr(config, "num_key_value_heads", None) or num_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    num_values = 2 * config.num_hidden_layers * num_cached * head_dim
    # As transformers counts them: keys and values repeated for all heads, plus the unrepeated values.
    num_copied = (2 * num_heads + num_cached) * head_dim
    return value_bytes * (num_values + num_copied + batch_tokens)
