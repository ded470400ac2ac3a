"""Configs as they were published: read, translated field by field, and refused where the function would be another.

Sizes are small here; names and all other values are those of the checkpoints, as far as public code quotes them.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert
from tests.support.conversion_cases import TOKENS, VOCAB_SIZE, bloom, falcon, gpt2, loaded, mpt


# bigscience/bloom-560m as transformers 4.26 printed it.
BLOOM_560M = {
    **{"apply_residual_connection_post_layernorm": False, "architectures": ["BloomForCausalLM"]},
    **{"attention_dropout": 0.0, "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "bos_token_id": 1},
    **{"eos_token_id": 2, "hidden_dropout": 0.0, "hidden_size": 48, "initializer_range": 0.02, "n_head": 4},
    **{
        "layer_norm_epsilon": 1e-05,
        "masked_softmax_fusion": True,
        "n_inner": None,
        "n_layer": 2,
        "model_type": "bloom",
    },
    **{"pad_token_id": 3, "pretraining_tp": 1, "skip_bias_add": True, "skip_bias_add_qkv": False, "unk_token_id": 0},
    **{"offset_alibi": 100, "slow_but_exact": False, "transformers_version": "4.26.0", "use_cache": True},
    **{"vocab_size": VOCAB_SIZE},
}
# The same checkpoint's first names, as PaddleNLP's BLOOM_PRETRAINED_INIT_CONFIGURATION quotes them.
BLOOM_BY_OLD_NAMES = {
    **{name: value for name, value in BLOOM_560M.items() if name not in ("hidden_size", "n_head", "pad_token_id")},
    **{"architectures": ["BloomModel"], "n_embed": 48, "num_attention_heads": 4, "seq_length": 4096},
}
# mosaicml/mpt-7b-instruct at transformers 4.28, as the notes of a port to TVM's Relax quote it.
MPT_7B = {
    **{"architectures": ["MPTForCausalLM"], "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig"}},
    "attn_config": {
        **{"alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0, "clip_qkv": None},
        **{"attn_type": "multihead_attention", "attn_uses_sequence_id": False, "prefix_lm": False},
        **{"qk_ln": False, "softmax_scale": None},
    },
    **{"d_model": 48, "emb_pdrop": 0, "embedding_fraction": 1.0, "expansion_ratio": 4, "init_device": "cpu"},
    **{"init_config": {"name": "kaiming_normal_", "init_gain": 0}, "learned_pos_emb": True, "logit_scale": None},
    **{"max_seq_len": 2048, "model_type": "mpt", "n_heads": 4, "n_layers": 2, "no_bias": True, "resid_pdrop": 0},
    **{"norm_type": "low_precision_layernorm", "tokenizer_name": "EleutherAI/gpt-neox-20b", "use_cache": False},
    **{"torch_dtype": "bfloat16", "transformers_version": "4.28.1", "verbose": 0, "vocab_size": VOCAB_SIZE},
}
# The storywriter's length, range and clipping.
MPT_STORYWRITER = {**MPT_7B, "attn_config": {**MPT_7B["attn_config"], "alibi_bias_max": 16, "clip_qkv": 6}}
MPT_STORYWRITER |= {"max_seq_len": 65536}
# What llm-foundry writes since 2024: MPTConfig, and its defaults in models/utils/config_defaults.py, at 0474027.
MPT_OF_LLM_FOUNDRY = {
    **{name: value for name, value in MPT_7B.items() if name != "verbose"},
    "attn_config": {
        **{name: value for name, value in MPT_7B["attn_config"].items() if name != "prefix_lm"},
        **{"attn_impl": "flash", "attn_logit_softcapping": None, "flex_attn_mod_list": [], "fused_qkv": True},
        **{"kv_dim": None, "qk_gn": False, "rope": False, "rope_impl": "dail", "rope_theta": 10000},
        **{"rope_dail_config": {"type": "original", "pos_idx_in_fp32": True, "xpos_scale_base": 512}},
        **{"rope_hf_config": {"type": "no_scaling", "factor": 1.0}, "sliding_window_size": -1},
    },
    "ffn_config": {"ffn_type": "mptmlp", "fc_type": {"name": "torch"}},
    **{"attention_bias": None, "block_overrides": None, "fc_type": {"name": "torch"}, "final_logit_softcapping": None},
    **{"learned_pos_emb": False, "norm_eps": 1e-06, "tie_word_embeddings": True, "use_pad_tok_in_ffn": True},
}
# tiiuae/falcon-rw-1b: the values by which public loaders of it tell it apart.
FALCON_RW = {
    **{"alibi": True, "apply_residual_connection_post_layernorm": False, "architectures": ["FalconForCausalLM"]},
    **{"attention_dropout": 0.0, "bias": True, "bos_token_id": 1, "eos_token_id": 2, "hidden_dropout": 0.0},
    **{"hidden_size": 48, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "falcon"},
    **{"multi_query": False, "new_decoder_architecture": False, "num_attention_heads": 4, "num_hidden_layers": 2},
    **{"parallel_attn": False, "torch_dtype": "bfloat16", "transformers_version": "4.27.4", "use_cache": True},
    **{"vocab_size": VOCAB_SIZE},
}
# With the names that Falcons had before transformers knew them, as in a demonstration of falcon-7b by Tenstorrent.
FALCON_BY_OLD_NAMES = {
    **{
        name: value
        for name, value in FALCON_RW.items()
        if name not in ("num_attention_heads", "num_hidden_layers", "new_decoder_architecture")
    },
    **{"architectures": ["RWForCausalLM"], "model_type": "RefinedWebModel", "n_head": 4, "n_head_kv": 4, "n_layer": 2},
    **{"auto_map": {"AutoConfig": "configuration_RW.RWConfig", "AutoModel": "modelling_RW.RWModel"}},
}
# gpt2 as transformers 4.57 printed it.
GPT2 = {
    **{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 1},
    **{"dtype": "float32", "embd_pdrop": 0.1, "eos_token_id": 1, "initializer_range": 0.02, "n_inner": None},
    **{"layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": TOKENS, "n_embd": 48, "n_head": 4, "n_layer": 2},
    **{"n_positions": TOKENS, "reorder_and_upcast_attn": False, "resid_pdrop": 0.1, "vocab_size": VOCAB_SIZE},
    **{"scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True, "summary_activation": None},
    **{"summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index", "use_cache": True},
    **{"summary_use_proj": True, "task_specific_params": {"text-generation": {"do_sample": True}}},
}
# gpt2-medium as transformers 4.6 printed it.
GPT2_MEDIUM = {**GPT2, "gradient_checkpointing": False, "n_special": 0, "predict_special_tokens": True}
# distilgpt2 as public copies of its config.json have it.
DISTILGPT2 = {**GPT2, "_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
# A GPT-2 of pytorch-transformers, 2019, as printed in a tutorial on Chinese ones.
GPT2_OF_2019 = {
    **{name: value for name, value in GPT2.items() if name not in ("activation_function", "architectures")},
    **{"finetuning_task": None, "num_labels": 1, "output_attentions": False, "output_hidden_states": False},
    **{"output_past": True, "pruned_heads": {}, "torchscript": False, "use_bfloat16": False},
}
# All of what transformers 4 knew of every config, as it writes without regard to defaults.
ALL_OF_TRANSFORMERS_4 = {
    **{"add_cross_attention": False, "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None},
    **{"decoder_start_token_id": None, "finetuning_task": None, "is_decoder": False, "is_encoder_decoder": False},
    **{"num_labels": 2, "output_hidden_states": False, "problem_type": None, "pruned_heads": {}, "return_dict": True},
    **{"sep_token_id": None, "tf_legacy_loss": False, "tie_encoder_decoder": False, "tie_word_embeddings": True},
    **{"tokenizer_class": None, "torchscript": False, "use_bfloat16": False, "temperature": 1.0},
    "prefix": None,
}

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
OF_BLOOM = {**SIZES, "embedding_layer_norm": True, "hidden_act": "gelu_pytorch_tanh", "bos_token_id": 1}
OF_MPT = {**SIZES, "use_bias": False, "hidden_act": "gelu", "train_context_length": 2048, "alibi_bias_max": 8}
OF_FALCON = {**SIZES, "alibi_bias_inside_scaling": True, "train_context_length": 2048, "num_key_value_heads": 4}
OF_GPT2 = {**SIZES, "position_method": "learned", "train_context_length": TOKENS, "hidden_act": "gelu_new"}
OF_GPT2 |= {"embd_pdrop": 0.1, "resid_pdrop": 0.1, "attention_dropout": 0.1}
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bloom-560m": (BLOOM_560M, {**OF_BLOOM, "train_context_length": 2048, "pad_token_id": 3}),
    "bloom by its old names": (BLOOM_BY_OLD_NAMES, {**OF_BLOOM, "train_context_length": 4096, "pad_token_id": None}),
    "bloom with every field": ({**ALL_OF_TRANSFORMERS_4, **BLOOM_560M}, OF_BLOOM),
    "mpt-7b": (MPT_7B, {**OF_MPT, "clip_qkv": None, "layer_norm_epsilon": 1e-5}),
    "mpt-7b-storywriter": (
        MPT_STORYWRITER,
        {**OF_MPT, "train_context_length": 65536, "alibi_bias_max": 16, "clip_qkv": 6},
    ),
    "mpt of llm-foundry": (MPT_OF_LLM_FOUNDRY, {**OF_MPT, "layer_norm_epsilon": 1e-6}),
    "falcon-rw-1b": (FALCON_RW, {**OF_FALCON, "hidden_act": "gelu", "bos_token_id": 1}),
    "falcon-rw-1b by its old names": (FALCON_BY_OLD_NAMES, OF_FALCON),
    "gpt2": (GPT2, OF_GPT2),
    "gpt2-medium": (GPT2_MEDIUM, OF_GPT2),
    "distilgpt2": (DISTILGPT2, OF_GPT2),
    "gpt2 of 2019": (GPT2_OF_2019, OF_GPT2),
    "gpt2 with every field": ({**ALL_OF_TRANSFORMERS_4, **GPT2}, OF_GPT2),
}


def write_checkpoint(folder: Path, fields: dict[str, Any]) -> ConvertConfig:
    """Weights without the prefix of the base model, as many published ones are, beside a config."""
    model_type = fields["model_type"].replace("RefinedWebModel", "falcon")
    make, width = {
        "bloom": (bloom, "hidden_size"),
        "mpt": (mpt, "d_model"),
        "falcon": (falcon, "hidden_size"),
        "gpt2": (gpt2, "n_embd"),
    }[model_type]
    make(4, **{width: 48}).base_model.save_pretrained(folder / "original")
    (folder / "original" / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return ConvertConfig(model=str(folder / "original"), output_dir=str(folder / "converted"))


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_configs_are_read(name: str, tmp_path: Path) -> None:
    fields, expected = PUBLISHED[name]
    convert(write_checkpoint(tmp_path, fields))
    config = loaded(tmp_path / "converted").config
    assert {field: getattr(config, field) for field in expected} == expected


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        (MPT_OF_LLM_FOUNDRY, "attn_config.rope", True),
        (MPT_OF_LLM_FOUNDRY, "attn_config.sliding_window_size", 512),
        (MPT_OF_LLM_FOUNDRY, "attn_config.qk_gn", True),
        (MPT_OF_LLM_FOUNDRY, "attn_config.fused_qkv", False),
        (MPT_OF_LLM_FOUNDRY, "attn_config.attn_logit_softcapping", 50.0),
        (MPT_OF_LLM_FOUNDRY, "attn_config.kv_n_heads", 2),
        (MPT_OF_LLM_FOUNDRY, "ffn_config.ffn_type", "mptglu"),
        (MPT_OF_LLM_FOUNDRY, "final_logit_softcapping", 30.0),
        (MPT_OF_LLM_FOUNDRY, "attention_bias", True),
        (MPT_OF_LLM_FOUNDRY, "block_overrides", {"overrides": {}}),
        (MPT_OF_LLM_FOUNDRY, "fc_type", {"name": "te"}),
        (GPT2_MEDIUM, "n_special", 3),
        (GPT2_OF_2019, "pruned_heads", {"0": [1]}),
        (BLOOM_560M, "add_cross_attention", True),
        (FALCON_BY_OLD_NAMES, "parallel_attn", True),
        (FALCON_BY_OLD_NAMES, "alibi", False),
    ],
)
def test_values_that_change_the_function_are_refused_by_name(
    fields: dict[str, Any], field: str, value: Any, tmp_path: Path
) -> None:
    changed = json.loads(json.dumps(fields))
    parent, _, name = field.rpartition(".")
    (changed[parent] if parent else changed)[name] = value
    config = write_checkpoint(tmp_path, changed)
    with pytest.raises(ValueError) as refusal:
        convert(config)
    assert f"{field} is {value!r} (it must be " in str(refusal.value)
    assert not (tmp_path / "converted").exists()


def test_two_names_of_one_field_must_agree(tmp_path: Path) -> None:
    convert(write_checkpoint(tmp_path / "agreeing", {**GPT2, "hidden_size": 48}))
    with pytest.raises(
        ValueError, match="n_head and num_attention_heads in config.json are the same field, got 4 and 2"
    ):
        convert(write_checkpoint(tmp_path / "other", {**GPT2, "num_attention_heads": 2}))


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        (BLOOM_560M, "hidden_size", None),
        (BLOOM_560M, "architectures", 5),
        (BLOOM_560M, "model_type", ["bloom"]),
        (MPT_7B, "attn_config", 5),
        (MPT_7B, "expansion_ratio", "4"),
    ],
)
def test_a_value_of_a_wrong_type_is_the_users_mistake(
    fields: dict[str, Any], field: str, value: Any, tmp_path: Path
) -> None:
    config = write_checkpoint(tmp_path, fields)
    (tmp_path / "original" / "config.json").write_text(json.dumps({**fields, field: value}), encoding="utf-8")
    with pytest.raises(ValueError, match="original"):
        convert(config)
    assert not (tmp_path / "converted").exists()
