"""MPT: no biases at all, queries, keys and values one below the other. The format that other programs read."""

import math
from collections.abc import Collection
from typing import Any

from transformers import MptConfig, MptForCausalLM

from modeling_alibi_gpt.checkpoints.convert.families import (
    PLAIN_ALIBI,
    Family,
    Fields,
    decoder_sizes,
    refuse_other_values,
    shared_fields,
)
from modeling_alibi_gpt.checkpoints.weight_map import Rule, module_rules, qkv_rules, stacked_rows
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig


HIDDEN_ACT = "gelu"
# transformers builds these, whatever config.json says.
BIAS_MAX_IN_TRANSFORMERS, EXPANSION_RATIO_IN_TRANSFORMERS = 8, 4
MODULES = {
    "wte": "embed_tokens",
    "blocks.{}.norm_1": "layers.{}.input_layernorm",
    "blocks.{}.attn.out_proj": "layers.{}.self_attn.o_proj",
    "blocks.{}.norm_2": "layers.{}.post_attention_layernorm",
    "blocks.{}.ffn.up_proj": "layers.{}.mlp.up_proj",
    "blocks.{}.ffn.down_proj": "layers.{}.mlp.down_proj",
    "norm_f": "norm",
}
# Layers of PyTorch, in the two ways in which llm-foundry says so.
TORCH_LAYERS = ["torch", {"name": "torch"}]
# Everything else would be another function; transformers ignores most of these without a word.
REPRESENTABLE: dict[str, Collection[Any]] = {
    "no_bias": [True],
    "logit_scale": [None],
    "norm_type": ["low_precision_layernorm", "layernorm"],
    "attn_config.alibi": [True],
    "attn_config.attn_type": ["multihead_attention"],
    "attn_config.prefix_lm": [False],
    "attn_config.qk_ln": [False],
}
# The same, of what only llm-foundry knows; the first value is its default.
REPRESENTABLE_IN_LLM_FOUNDRY: dict[str, Collection[Any]] = {
    "attention_bias": [None, False],
    "block_overrides": [None],
    "fc_type": TORCH_LAYERS,
    "final_logit_softcapping": [None],
    "ffn_config.ffn_type": ["mptmlp"],
    "ffn_config.fc_type": TORCH_LAYERS,
    "attn_config.attn_logit_softcapping": [None],
    "attn_config.flex_attn_mod_list": [[], None],
    "attn_config.fused_qkv": [True],
    "attn_config.kv_dim": [None],
    "attn_config.kv_n_heads": [None],
    "attn_config.qk_gn": [False],
    "attn_config.reuse_kv_layer_idx": [None],
    "attn_config.rope": [False],
    "attn_config.sliding_window_size": [-1],
}


def rules(config: AlibiGPTConfig, fields: Fields) -> list[Rule]:
    size = config.num_attention_heads * config.head_dim
    return [
        *module_rules(MODULES, ["weight"]),
        *qkv_rules("blocks.{}.attn.Wqkv", ["weight"], stacked_rows(size, size, size)),
    ]


def to_alibi_gpt(fields: Fields, as_transformers: bool) -> Fields:
    """``alibi_bias_max`` and ``expansion_ratio`` are honoured, as by the library that MPT was trained with."""
    expected = REPRESENTABLE | REPRESENTABLE_IN_LLM_FOUNDRY
    expected["attn_config.kv_n_heads"] = [None, fields["n_heads"]]
    refuse_other_values("this MPT cannot be an AlibiGPT", fields, expected)
    bias_max, expansion_ratio = fields["attn_config.alibi_bias_max"], fields["expansion_ratio"]
    if as_transformers:
        bias_max, expansion_ratio = BIAS_MAX_IN_TRANSFORMERS, EXPANSION_RATIO_IN_TRANSFORMERS
    return shared_fields(fields) | {
        "hidden_size": fields["d_model"],
        "num_hidden_layers": fields["n_layers"],
        "num_attention_heads": fields["n_heads"],
        "intermediate_size": math.floor(expansion_ratio * fields["d_model"]),
        "hidden_act": HIDDEN_ACT,
        "use_bias": False,
        "clip_qkv": fields["attn_config.clip_qkv"] or None,
        "attention_scale": fields["attn_config.softmax_scale"],
        "embd_pdrop": fields["emb_pdrop"],
        "resid_pdrop": fields["resid_pdrop"],
        "attention_dropout": fields["attn_config.attn_pdrop"],
        "train_context_length": fields["max_seq_len"],
        "alibi_bias_max": bias_max,
    }


def from_alibi_gpt(config: AlibiGPTConfig, as_transformers: bool = True) -> MptConfig:
    """``alibi_bias_max`` other than 8 is for other readers than transformers, which know no scale in turn."""
    expected = {
        **decoder_sizes(config),
        **PLAIN_ALIBI,
        # MptConfig holds whole numbers here.
        "alibi_bias_max": [int(config.alibi_bias_max)],
        "attention_dropout": [0],
        "hidden_act": [HIDDEN_ACT],
        "use_bias": [False],
        "embedding_layer_norm": [False],
    }
    if not as_transformers:
        expected["attention_scale"] = [None, config.head_dim**-0.5]
    refuse_other_values("this AlibiGPT cannot be an MPT", vars(config), expected)
    if as_transformers and config.alibi_bias_max != BIAS_MAX_IN_TRANSFORMERS:
        raise ValueError(
            f"alibi_bias_max is {config.alibi_bias_max}, and MPT in transformers computes with "
            f"{BIAS_MAX_IN_TRANSFORMERS} whatever config.json says; llama.cpp and vLLM honour it: --reader llama.cpp "
            "or --reader vllm writes an MPT for them"
        )
    return MptConfig(
        **shared_fields(vars(config)),
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        expansion_ratio=EXPANSION_RATIO_IN_TRANSFORMERS,
        max_seq_len=config.train_context_length,
        emb_pdrop=config.embd_pdrop,
        resid_pdrop=config.resid_pdrop,
        learned_pos_emb=False,
        attn_config={
            "alibi": True,
            "alibi_bias_max": int(config.alibi_bias_max),
            "clip_qkv": None if config.clip_qkv is None else float(config.clip_qkv),
            "softmax_scale": None if config.attention_scale is None else float(config.attention_scale),
        },
    )


MPT = Family(
    config_class=MptConfig,
    causal_lm=MptForCausalLM,
    architectures=("MptForCausalLM", "MPTForCausalLM", "MptModel"),
    to_alibi_gpt=to_alibi_gpt,
    from_alibi_gpt=from_alibi_gpt,
    rules=rules,
    other_names={"norm_eps": "layer_norm_epsilon"},
    other_defaults={name: next(iter(allowed)) for name, allowed in REPRESENTABLE_IN_LLM_FOUNDRY.items()},
    without_effect=(
        *("init_config", "tokenizer_name", "verbose", "use_pad_tok_in_ffn"),
        # Gradients of embeddings, and a table of positions that llm-foundry drops where there is ALiBi.
        *("embedding_fraction", "learned_pos_emb"),
        # How llm-foundry would rotate if it did.
        *(f"attn_config.rope_{name}" for name in ("dail_config", "hf_config", "impl", "theta")),
    ),
)
