"""Falcon with ALiBi (falcon-rw): biases inside the scaling, one key and value head or one for each query head."""

from transformers import FalconConfig, FalconForCausalLM

from modeling_alibi_gpt.alibi import alibi_slopes
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.conversion.families import Family, Fields, refuse_other_values, shared_fields
from modeling_alibi_gpt.conversion.weight_map import (
    Rule,
    module_rules,
    qkv_rules,
    rows_by_head,
    stacked_rows,
    zero_bias_rules,
)


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
    """Falcon's LayerNorms have biases even where its linear layers have none; ours then have zeros there."""
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
    """Slopes are the paper's; transformers rounds them, positions and their products to bfloat16.

    ``as_transformers`` reproduces the rounded slopes. The rounded products depend on the absolute position, so that no
    bias of distances equals them.
    """
    expected = {"alibi": [True], "new_decoder_architecture": [False], "parallel_attn": [False]}
    if not fields["multi_query"]:
        expected["num_kv_heads"] = [None, fields["num_attention_heads"]]
    expected["apply_residual_connection_post_layernorm"] = [False]
    refuse_other_values("this Falcon cannot be an AlibiGPT", fields, expected)
    slopes: Fields = {}
    if as_transformers:
        rounded = alibi_slopes(fields["num_attention_heads"]).bfloat16().tolist()
        slopes = {"alibi_slope_kind": "custom", "alibi_slopes": rounded}
    return (
        shared_fields(fields)
        | slopes
        | {
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
    )


FALCON = Family(
    config_class=FalconConfig,
    causal_lm=FalconForCausalLM,
    architectures=("FalconForCausalLM", "RWForCausalLM", "FalconModel", "RWModel"),
    to_alibi_gpt=to_alibi_gpt,
    rules=rules,
    other_names={"n_embed": "hidden_size", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers"},
    other_defaults={"apply_residual_connection_post_layernorm": False},
    # Without effect where there is ALiBi, or no parallel attention.
    without_effect=("rope_parameters", "rope_scaling", "rope_theta", "num_ln_in_parallel_attn"),
)
