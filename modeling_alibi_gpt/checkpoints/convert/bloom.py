"""BLOOM: a LayerNorm after the embedding, biases everywhere, and queries, keys and values interleaved by head."""

from transformers import BloomConfig, BloomForCausalLM

from modeling_alibi_gpt.checkpoints.convert.families import (
    PLAIN_ALIBI,
    Family,
    Fields,
    decoder_sizes,
    refuse_other_values,
    shared_fields,
)
from modeling_alibi_gpt.checkpoints.weight_map import Rule, module_rules, qkv_rules, rows_by_head
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig


# BLOOM's code writes out the tanh approximation of GELU; this is the same function in one kernel.
HIDDEN_ACT = "gelu_pytorch_tanh"
SAME_ACTS = (HIDDEN_ACT, "gelu_fast", "gelu_new")
TRAIN_CONTEXT_LENGTH = 2048  # of every published BLOOM; some of their configs omit it
MODULES = {
    "word_embeddings_layernorm": "embedding_norm",
    "h.{}.input_layernorm": "layers.{}.input_layernorm",
    "h.{}.self_attention.dense": "layers.{}.self_attn.o_proj",
    "h.{}.post_attention_layernorm": "layers.{}.post_attention_layernorm",
    "h.{}.mlp.dense_h_to_4h": "layers.{}.mlp.up_proj",
    "h.{}.mlp.dense_4h_to_h": "layers.{}.mlp.down_proj",
    "ln_f": "norm",
}
FUSED = "h.{}.self_attention.query_key_value"


def rules(config: AlibiGPTConfig, fields: Fields) -> list[Rule]:
    return [
        *module_rules({"word_embeddings": "embed_tokens"}, ["weight"]),
        *module_rules(MODULES, ["weight", "bias"]),
        *qkv_rules(FUSED, ["weight", "bias"], rows_by_head(config.num_attention_heads)),
    ]


def to_alibi_gpt(fields: Fields, as_transformers: bool) -> Fields:
    refuse_other_values(
        "this BLOOM cannot be an AlibiGPT",
        fields,
        {"apply_residual_connection_post_layernorm": [False], "n_inner": [None, 4 * fields["hidden_size"]]},
    )
    return shared_fields(fields) | {
        "hidden_size": fields["hidden_size"],
        "num_hidden_layers": fields["n_layer"],
        "num_attention_heads": fields["n_head"],
        "hidden_act": HIDDEN_ACT,
        "embedding_layer_norm": True,
        "resid_pdrop": fields["hidden_dropout"],
        "attention_dropout": fields["attention_dropout"],
        "train_context_length": fields["seq_length"] or TRAIN_CONTEXT_LENGTH,
    }


def from_alibi_gpt(config: AlibiGPTConfig, as_transformers: bool = True) -> BloomConfig:
    expected = {
        **decoder_sizes(config),
        **PLAIN_ALIBI,
        "alibi_bias_max": [8],
        "hidden_act": SAME_ACTS,
        "use_bias": [True],
        "embedding_layer_norm": [True],
        "clip_qkv": [None],
        "attention_scale": [None, config.head_dim**-0.5],
        "embd_pdrop": [0],
    }
    remedy = "a model trained with configs/model/servable_bloom.json can be converted"
    refuse_other_values("this AlibiGPT cannot be a BLOOM", vars(config), expected, remedy=remedy)
    return BloomConfig(
        **shared_fields(vars(config)),
        hidden_size=config.hidden_size,
        n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads,
        hidden_dropout=config.resid_pdrop,
        attention_dropout=config.attention_dropout,
        seq_length=config.train_context_length,
    )


BLOOM = Family(
    config_class=BloomConfig,
    causal_lm=BloomForCausalLM,
    architectures=("BloomForCausalLM", "BloomModel"),
    to_alibi_gpt=to_alibi_gpt,
    from_alibi_gpt=from_alibi_gpt,
    rules=rules,
    other_names={"n_embed": "hidden_size"},
    other_defaults={"seq_length": None, "n_inner": None},
    without_effect=(
        *("attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi"),
        *("skip_bias_add", "skip_bias_add_qkv"),
    ),
)
