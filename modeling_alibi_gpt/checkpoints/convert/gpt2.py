"""GPT-2: learned positions, linear layers stored as (in, out). Without positions, it can be fine-tuned to ALiBi."""

from transformers import GPT2Config, GPT2LMHeadModel

from modeling_alibi_gpt.checkpoints.convert.families import Family, Fields, refuse_other_values, shared_fields
from modeling_alibi_gpt.checkpoints.weight_map import (
    LEFT_OUT,
    TRANSPOSED,
    Rule,
    module_rules,
    qkv_rules,
    stacked_rows,
    transposed,
)
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig


POSITION_METHOD = "learned"
NORMS = {
    "h.{}.ln_1": "layers.{}.input_layernorm",
    "h.{}.ln_2": "layers.{}.post_attention_layernorm",
    "ln_f": "norm",
}
LINEARS = {
    "h.{}.attn.c_proj": "layers.{}.self_attn.o_proj",
    "h.{}.mlp.c_fc": "layers.{}.mlp.up_proj",
    "h.{}.mlp.c_proj": "layers.{}.mlp.down_proj",
}
FUSED = "h.{}.attn.c_attn"


def rules(config: AlibiGPTConfig, fields: Fields) -> list[Rule]:
    fused = stacked_rows(*[config.num_attention_heads * config.head_dim] * 3)
    positions = module_rules({"wpe": "position_method.embedding"}, ["weight"])
    if config.position_method != POSITION_METHOD:
        positions = [Rule(("wpe.weight",), (), LEFT_OUT)]
    return [
        *module_rules({"wte": "embed_tokens"}, ["weight"]),
        *positions,
        *module_rules(NORMS, ["weight", "bias"]),
        *module_rules(LINEARS, ["weight"], TRANSPOSED),
        *module_rules(LINEARS, ["bias"]),
        *qkv_rules(FUSED, ["weight"], transposed(fused)),
        *qkv_rules(FUSED, ["bias"], fused),
    ]


def to_alibi_gpt(fields: Fields, as_transformers: bool) -> Fields:
    expected = {"scale_attn_by_inverse_layer_idx": [False], "n_special": [0]}
    refuse_other_values("this GPT-2 cannot be an AlibiGPT", fields, expected)
    return shared_fields(fields) | {
        "hidden_size": fields["n_embd"],
        "num_hidden_layers": fields["n_layer"],
        "num_attention_heads": fields["n_head"],
        "intermediate_size": fields["n_inner"],
        "hidden_act": fields["activation_function"],
        "attention_scale": None if fields["scale_attn_weights"] else 1.0,
        "embd_pdrop": fields["embd_pdrop"],
        "resid_pdrop": fields["resid_pdrop"],
        "attention_dropout": fields["attn_pdrop"],
        "train_context_length": fields["n_positions"],
        "position_method": POSITION_METHOD,
    }


GPT2 = Family(
    config_class=GPT2Config,
    causal_lm=GPT2LMHeadModel,
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    to_alibi_gpt=to_alibi_gpt,
    rules=rules,
    # Extra embedding rows beyond the vocabulary, in configs from before transformers.
    other_defaults={"n_special": 0},
    without_effect=("n_ctx", "gradient_checkpointing", "output_past", "predict_special_tokens"),
    # Causal masks, which old checkpoints store like weights.
    ignored_tensors=(r"h\.\d+\.attn\.(bias|masked_bias)",),
)
