"""Falcon with ALiBi (falcon-rw): bias inside the scaling, and one key-value head, or one per query head."""

from collections.abc import Collection
from typing import Any

from transformers import FalconConfig, FalconForCausalLM

from modeling_alibi_gpt.checkpoints.convert.families import Family, Fields, refuse_other_values, shared_fields
from modeling_alibi_gpt.checkpoints.weight_map import (
    Rule,
    module_rules,
    qkv_rules,
    rows_by_head,
    stacked_rows,
    zero_bias_rules,
)
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig


NORMS = {
    "h.{}.input_layernorm": "layers.{}.input_layernorm",
    "h.{}.post_attention_layernorm": "layers.{}.post_attention_layernorm",
    "ln_f": "norm",
}
LINEARS = {
    "h.{}.self_attention.dense": "layers.{}.self_attn.o_proj",
    "h.{}.mlp.dense_h_to_4h": "layers.{}.mlp.up_proj",
    "h.{}.mlp.dense_4h_to_h": "layers.{}.mlp.down_proj",
}
FUSED = "h.{}.self_attention.query_key_value"


def rules(config: AlibiGPTConfig, fields: Fields) -> list[Rule]:
    """Falcon's LayerNorms have biases even if its linear layers have none; AlibiGPT's linear layers then get zeros."""
    num_heads, head_dim = config.num_attention_heads, config.head_dim
    fused = (
        stacked_rows(num_heads * head_dim, head_dim, head_dim) if fields["multi_query"] else rows_by_head(num_heads)
    )
    found = [
        *module_rules({"word_embeddings": "embed_tokens"}, ["weight"]),
        *module_rules(NORMS, ["weight", "bias"]),
    ]
    linears = [*module_rules(LINEARS, ["weight"]), *qkv_rules(FUSED, ["weight"], fused)]
    if not fields["bias"]:
        return found + zero_bias_rules(linears)
    return found + linears + module_rules(LINEARS, ["bias"]) + qkv_rules(FUSED, ["bias"], fused)


def to_alibi_gpt(fields: Fields, as_transformers: bool) -> Fields:
    """The bias is the exact one of the paper; transformers rounds slopes, positions and products to bfloat16."""
    if as_transformers:
        raise ValueError(
            "as_transformers cannot be used with a Falcon: transformers rounds its biases by absolute position, "
            "which a bias by distance cannot reproduce"
        )
    expected: dict[str, Collection[Any]] = {
        "alibi": [True],
        "new_decoder_architecture": [False],
        "parallel_attn": [False],
        "apply_residual_connection_post_layernorm": [False],
    }
    if not fields["multi_query"]:
        expected["num_kv_heads"] = [None, fields["num_attention_heads"]]
    refuse_other_values("this Falcon cannot be an AlibiGPT", fields, expected)
    return shared_fields(fields) | {
        "hidden_size": fields["hidden_size"],
        "num_hidden_layers": fields["num_hidden_layers"],
        "num_attention_heads": fields["num_attention_heads"],
        "num_key_value_heads": 1 if fields["multi_query"] else None,
        "intermediate_size": fields["ffn_hidden_size"],
        "hidden_act": fields["activation"],
        "resid_pdrop": fields["hidden_dropout"] or 0.0,
        "attention_dropout": fields["attention_dropout"] or 0.0,
        "train_context_length": fields["max_position_embeddings"],
        "alibi_bias_inside_scaling": True,
    }


FALCON = Family(
    config_class=FalconConfig,
    causal_lm=FalconForCausalLM,
    architectures=("FalconForCausalLM", "RWForCausalLM", "FalconModel", "RWModel"),
    to_alibi_gpt=to_alibi_gpt,
    rules=rules,
    other_model_types=("RefinedWebModel",),
    other_names={
        "n_embed": "hidden_size",
        "n_head": "num_attention_heads",
        "n_head_kv": "num_kv_heads",
        "n_layer": "num_hidden_layers",
    },
    other_defaults={"apply_residual_connection_post_layernorm": False},
    # These have no effect with ALiBi or without parallel attention.
    without_effect=("rope_parameters", "rope_scaling", "rope_theta", "num_ln_in_parallel_attn"),
)
