"""Generates text from a checkpoint with the pipeline of transformers."""

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, pipeline, set_seed
from transformers.modeling_outputs import CausalLMOutputWithPast

from modeling_alibi_gpt.checkpoints.load import (
    COMPUTE_DTYPES,
    load_causal_lm,
    load_model_tokenizer,
    train_context_length,
)
from modeling_alibi_gpt.runtime.config import Count, UserPath, config_dataclass
from modeling_alibi_gpt.runtime.remote_code import refuse_hub_kernel


@config_dataclass
class GenerateConfig:
    """Settings of ``alibi-gpt generate``."""

    model: UserPath
    """Checkpoint folder; its own tokenizer is used."""
    prompt: str
    """Start of the text."""
    max_new_tokens: Count = 100
    """Longest continuation, in tokens; it may exceed the training length."""
    do_sample: bool = True
    """Whether to sample; false takes the most likely token each time."""
    temperature: Annotated[float, Field(ge=1e-6)] = 0.8
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus sampling: share of the probability from which tokens are drawn."""
    seed: int = 0
    """Seed of sampling."""
    dtype: Literal[*COMPUTE_DTYPES] = "float32"
    """``float32`` or ``bfloat16``."""
    attn_implementation: str | None = None
    """Attention back end; null is the model's default."""
    plugins: list[str] | None = None
    """Modules to import first, such as one that registers a position method."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt is empty: give the text to continue")
        refuse_hub_kernel(self.attn_implementation)


def generate_text(config: GenerateConfig) -> dict[str, Any]:
    """Continue the prompt. Returns ``prompt`` and ``text``, which includes the prompt.

    Raises:
        ValueError: The model or a setting cannot be used, the text exceeds the model's position table, or logits are
            not finite numbers.
    """
    tokenizer = load_model_tokenizer(config.model)
    model = load_causal_lm(config.model, dtype=config.dtype, attn_implementation=config.attn_implementation)
    set_seed(config.seed)
    # By default, transformers draws from 50 tokens and adds the generation settings of the checkpoint.
    model.generation_config = GenerationConfig()
    sampling = {"temperature": config.temperature, "top_p": config.top_p, "top_k": 0} if config.do_sample else {}
    settings = GenerationConfig(
        max_new_tokens=config.max_new_tokens,
        do_sample=config.do_sample,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        **sampling,
    )
    writer = pipeline("text-generation", model=model, tokenizer=tokenizer, trust_remote_code=False)

    def check_logits(module: nn.Module, arguments: tuple[Any, ...], output: CausalLMOutputWithPast) -> None:
        # Some may be -inf, for tokens that never follow. Without sampling, NaN would be the token of id 0.
        if not output.logits[:, -1].max().isfinite():
            raise ValueError(f"{config.model}: the model's logits are not finite numbers, so there is no text")

    model.register_forward_hook(check_logits)
    try:
        text = writer(config.prompt, generation_config=settings)[0]["generated_text"]
    except (IndexError, RuntimeError) as error:
        longest = _table_length(model.config)
        if longest is None or len(tokenizer(config.prompt).input_ids) + config.max_new_tokens <= longest:
            raise
        raise ValueError(
            f"{config.model}: the prompt plus max_new_tokens = {config.max_new_tokens} exceeds the model's position "
            f"table of {longest} tokens: lower max_new_tokens"
        ) from error
    return {"prompt": config.prompt, "text": text}


def _table_length(config: PreTrainedConfig) -> int | None:
    """Length in tokens at which a table of vectors, or of biases as in MPT, may end without a message of its own."""
    has_message_or_no_table = hasattr(config, "position_method") or getattr(config, "rope_parameters", None)
    return None if has_message_or_no_table else train_context_length(config)
