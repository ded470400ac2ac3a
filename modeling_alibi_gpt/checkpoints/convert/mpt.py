"""MPT: queries, keys and values stacked by rows. This is the format that most other programs read.

There are two flavours. ``MptForCausalLM`` of transformers has no biases and a fixed range of slopes.
``MPTForCausalLM`` of llm-foundry, which MPTs were trained with, supports biases and any range; vLLM, CTranslate2 and
llama.cpp's converter read it.
"""

import json
import math
from collections.abc import Collection
from dataclasses import fields as fields_of
from typing import Any

import torch
from torch import nn
from transformers import MptConfig, MptForCausalLM, PreTrainedConfig
from transformers.models.mpt.configuration_mpt import MptAttentionConfig

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


FLAVOURS = ("transformers", "llm-foundry")
HIDDEN_ACT = "gelu"
# transformers uses these values, whatever config.json says.
BIAS_MAX_IN_TRANSFORMERS, EXPANSION_RATIO_IN_TRANSFORMERS = 8, 4
MODULES = {
    "blocks.{}.norm_1": "layers.{}.input_layernorm",
    "blocks.{}.attn.out_proj": "layers.{}.self_attn.o_proj",
    "blocks.{}.norm_2": "layers.{}.post_attention_layernorm",
    "blocks.{}.ffn.up_proj": "layers.{}.mlp.up_proj",
    "blocks.{}.ffn.down_proj": "layers.{}.mlp.down_proj",
    "norm_f": "norm",
}
# llm-foundry's two notations for plain PyTorch layers.
TORCH_LAYERS = ["torch", {"name": "torch"}]
# Other values change the computation; transformers silently ignores most of these fields.
REPRESENTABLE: dict[str, Collection[Any]] = {
    "logit_scale": [None],
    "norm_type": ["low_precision_layernorm", "layernorm"],
    "attn_config.alibi": [True],
    "attn_config.attn_type": ["multihead_attention"],
    "attn_config.prefix_lm": [False],
    "attn_config.qk_ln": [False],
}
# The same for fields that only llm-foundry has; the first value is its default.
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
    parameters = ["weight", "bias"] if config.use_bias else ["weight"]
    return [
        *module_rules({"wte": "embed_tokens"}, ["weight"]),
        *module_rules(MODULES, parameters),
        *qkv_rules("blocks.{}.attn.Wqkv", parameters, stacked_rows(size, size, size)),
    ]


def to_alibi_gpt(fields: Fields, as_transformers: bool) -> Fields:
    """``alibi_bias_max`` and ``expansion_ratio`` are respected, as in the library that MPT was trained with."""
    expected = REPRESENTABLE | REPRESENTABLE_IN_LLM_FOUNDRY
    expected["attn_config.kv_n_heads"] = [None, fields["n_heads"]]
    if as_transformers:
        expected["no_bias"] = [True]  # transformers would leave out the biases
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
        "use_bias": not fields["no_bias"],
        "clip_qkv": fields["attn_config.clip_qkv"] or None,
        "attention_scale": fields["attn_config.softmax_scale"],
        "embd_pdrop": fields["emb_pdrop"],
        "resid_pdrop": fields["resid_pdrop"],
        "attention_dropout": fields["attn_config.attn_pdrop"],
        "train_context_length": fields["max_seq_len"],
        "alibi_bias_max": bias_max,
    }


def from_alibi_gpt(config: AlibiGPTConfig, as_transformers: bool = True) -> MptConfig:
    """Biases and an ``alibi_bias_max`` other than 8 need llm-foundry's flavour; another scale needs transformers'."""
    expected = {
        **decoder_sizes(config),
        **PLAIN_ALIBI,
        # MptConfig requires an integer here.
        "alibi_bias_max": [int(config.alibi_bias_max)],
        "attention_dropout": [0],
        "hidden_act": [HIDDEN_ACT],
        "embedding_layer_norm": [False],
    }
    train_another = "a model trained with configs/model/servable_mpt.json can be converted"
    remedies = {
        "attention_dropout": "MPT's config in transformers only accepts integers for attention dropout, which affects "
        "training only: set attention_dropout to 0 in config.json"
    }
    if as_transformers:
        expected["use_bias"] = [False]
        remedies["use_bias"] = f"{train_another}, and --flavour llm-foundry supports biases, for vLLM and llama.cpp"
    else:
        expected["attention_scale"] = [None, config.head_dim**-0.5]
        expected["layer_norm_epsilon"] = [1e-5]
    refuse_other_values(
        "this AlibiGPT cannot be an MPT", vars(config), expected, remedy=train_another, remedies=remedies
    )
    if as_transformers and config.alibi_bias_max != BIAS_MAX_IN_TRANSFORMERS:
        raise ValueError(
            f"alibi_bias_max is {config.alibi_bias_max}, but MPT in transformers always uses "
            f"{BIAS_MAX_IN_TRANSFORMERS}; llama.cpp and vLLM respect it: use --flavour llm-foundry to write an MPT "
            "for them"
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
        no_bias=not config.use_bias,
        attn_config={
            "alibi": True,
            "alibi_bias_max": int(config.alibi_bias_max),
            "clip_qkv": None if config.clip_qkv is None else float(config.clip_qkv),
            "softmax_scale": None if config.attention_scale is None else float(config.attention_scale),
        },
    )


def llm_foundry_fields(config: MptConfig) -> Fields:
    """``config.json`` in the format of llm-foundry: its class name, and only attention fields in ``attn_config``.

    TGI reads ``verbose`` and ``init_config``, which do not change the computation.
    """
    written = json.loads(config.to_json_string(use_diff=False))
    of_attention = {field.name for field in fields_of(MptAttentionConfig)}
    of_attention -= {field.name for field in fields_of(PreTrainedConfig)}
    attn_config = {name: value for name, value in written["attn_config"].items() if name in of_attention}
    unused = {"init_config": {"name": "kaiming_normal_"}, "verbose": 0}
    return written | {"architectures": ["MPTForCausalLM"], "attn_config": attn_config} | unused


def engines_that_differ(config: AlibiGPTConfig) -> dict[str, str]:
    """The fields that each engine ignores in an MPT of llm-foundry's flavour, according to its source code.

    vLLM ties the output layer to the embedding. CTranslate2 does so too, does not clip, and drops the biases of norms;
    transformers drops all biases. CTranslate2 and transformers use 8 as the range of slopes.
    """
    fixed: dict[str, Fields] = {
        "transformers": {"use_bias": False, "alibi_bias_max": BIAS_MAX_IN_TRANSFORMERS},
        "vLLM": {"tie_word_embeddings": True},
        "CTranslate2": {
            **{"use_bias": False, "alibi_bias_max": BIAS_MAX_IN_TRANSFORMERS},
            **{"tie_word_embeddings": True, "clip_qkv": None},
        },
    }
    found = {
        engine: ", ".join(name for name, value in fields.items() if getattr(config, name) != value)
        for engine, fields in fixed.items()
    }
    return {engine: names for engine, names in found.items() if names}


class MptWithBiases(MptForCausalLM):
    """MPT with the biases that llm-foundry adds if ``no_bias`` is false, which transformers does not support."""

    def __init__(self, config: MptConfig) -> None:
        super().__init__(config)
        if config.no_bias:
            return
        for module in self.transformer.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.bias = nn.Parameter(torch.zeros(module.weight.shape[0]))


MPT = Family(
    config_class=MptConfig,
    causal_lm=MptWithBiases,
    architectures=("MptForCausalLM", "MPTForCausalLM", "MptModel"),
    to_alibi_gpt=to_alibi_gpt,
    from_alibi_gpt=from_alibi_gpt,
    rules=rules,
    other_names={"norm_eps": "layer_norm_epsilon"},
    other_defaults={name: next(iter(allowed)) for name, allowed in REPRESENTABLE_IN_LLM_FOUNDRY.items()},
    without_effect=(
        *("init_config", "tokenizer_name", "verbose", "use_pad_tok_in_ffn"),
        # Scaling of embedding gradients, and a position table that llm-foundry drops with ALiBi.
        *("embedding_fraction", "learned_pos_emb"),
        # Settings of rotary positions, which are turned off.
        *(f"attn_config.rope_{name}" for name in ("dail_config", "hf_config", "impl", "theta")),
    ),
)
