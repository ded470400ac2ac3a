"""MPT both ways, and its slopes where transformers and its config disagree."""

import json
from pathlib import Path

import pytest
import torch
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from modeling_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.alibi import alibi_slopes
from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert
from modeling_alibi_gpt.checkpoints.convert.mpt import from_alibi_gpt
from tests.support.conversion_cases import (
    NUM_HEADS,
    TOLERANCE,
    assert_same_weights,
    converted,
    largest_difference,
    loaded,
    mpt,
)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("num_heads", NUM_HEADS)
def test_logits_are_those_of_the_original(num_heads: int, tied: bool, tmp_path: Path) -> None:
    original = mpt(num_heads, tie_word_embeddings=tied)
    ours = converted(original, tmp_path)
    assert not ours.config.use_bias
    for padded in (False, True):
        assert largest_difference(original, ours, padded=padded) < TOLERANCE


def test_clipping_and_scale_come_along(tmp_path: Path) -> None:
    original = mpt(attn_config={"clip_qkv": 0.5, "softmax_scale": 0.2})
    ours = converted(original, tmp_path)
    assert (ours.config.clip_qkv, ours.config.attention_scale) == (0.5, 0.2)
    for padded in (False, True):
        assert largest_difference(original, ours, padded=padded) < TOLERANCE
    ours.config.clip_qkv = None
    assert largest_difference(original, ours, padded=False) > 0.01


def test_heads_have_the_papers_slopes_in_the_papers_order() -> None:
    for num_heads in range(1, 130):
        slopes = -build_mpt_alibi_tensor(num_heads, 2)[:, 0, 0]
        torch.testing.assert_close(slopes, alibi_slopes(num_heads), rtol=2**-22, atol=0)  # two units of the last place


def test_the_range_of_slopes_is_the_configs_or_that_of_transformers(tmp_path: Path) -> None:
    original = mpt(attn_config={"alibi_bias_max": 16})
    (tmp_path / "trained").mkdir()
    ours = converted(original, tmp_path / "trained")
    assert ours.config.alibi_bias_max == 16
    assert largest_difference(original, ours, padded=False) > 0.01
    (tmp_path / "quirk").mkdir()
    ours = converted(original, tmp_path / "quirk", as_transformers=True)
    assert ours.config.alibi_bias_max == 8
    assert largest_difference(original, ours, padded=True) < TOLERANCE


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_way_back_is_bit_exact(tied: bool, tmp_path: Path) -> None:
    attn_config = {"clip_qkv": 6.0, "softmax_scale": 0.2}
    original = mpt(
        6, tie_word_embeddings=tied, attn_config=attn_config, resid_pdrop=0.1, emb_pdrop=0.2, use_cache=True
    )
    converted(original, tmp_path)
    convert(ConvertConfig(model=str(tmp_path / "converted"), output_dir=str(tmp_path / "back"), to="mpt"))
    back = loaded(tmp_path / "back")
    assert_same_weights(original, back)
    before, after = ({**model.config.to_dict(), **model.config.attn_config.to_dict()} for model in (original, back))
    differing = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    # llm-foundry, too, has no table of positions where there is ALiBi.
    assert differing <= {"_name_or_path", "attn_config", "dtype", "learned_pos_emb"}
    for padded in (False, True):
        assert largest_difference(original, back, padded=padded) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("norm_type", "low_precision_rmsnorm"),
        ("no_bias", False),
        ("logit_scale", 0.5),
        ("attn_config.qk_ln", True),
        ("attn_config.alibi", False),
        ("attn_config.attn_type", "multiquery_attention"),
        ("attn_config.prefix_lm", True),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(field: str, value: object, tmp_path: Path) -> None:
    mpt().save_pretrained(tmp_path / "original")
    fields = json.loads((tmp_path / "original" / "config.json").read_text(encoding="utf-8"))
    parent, _, name = field.rpartition(".")
    (fields[parent] if parent else fields)[name] = value
    (tmp_path / "original" / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ValueError, match=f"this MPT cannot be an AlibiGPT: {field} is {value!r}"):
        convert(ConvertConfig(model=str(tmp_path / "original"), output_dir=str(tmp_path / "converted")))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("use_bias", True), ("embedding_layer_norm", True), ("hidden_act", "gelu_new"), ("alibi_bias_max", 7.5)],
        *[("alibi_beta", 2.0), ("attention_dropout", 0.1), ("alibi_trainable", "slopes"), ("num_key_value_heads", 2)],
    ],
)
def test_the_way_out_refuses_what_mpt_cannot_hold(field: str, value: object) -> None:
    fields = {"use_bias": False, "hidden_size": 48, "num_attention_heads": 4}
    assert from_alibi_gpt(AlibiGPTConfig(**fields)).attn_config.alibi_bias_max == 8
    with pytest.raises(ValueError, match=f"cannot be an MPT: {field} is"):
        from_alibi_gpt(AlibiGPTConfig(**{**fields, field: value}))


def test_slopes_that_transformers_would_not_compute_are_for_other_readers_only(tmp_path: Path) -> None:
    original = converted(mpt(6, attn_config={"alibi_bias_max": 16}), tmp_path)
    options = {"model": str(tmp_path / "converted"), "output_dir": str(tmp_path / "back"), "to": "mpt"}
    with pytest.raises(ValueError, match="is 16, and MPT in transformers computes with 8 .* --reader llama.cpp or"):
        convert(ConvertConfig(**options))
    assert not (tmp_path / "back").exists()
    convert(ConvertConfig(**options, reader="vllm"))
    back = loaded(tmp_path / "back")
    assert back.config.attn_config.alibi_bias_max == 16
    assert largest_difference(original, back, padded=False) > 0.01, "transformers still ignores it"


def test_other_readers_have_one_scale_only() -> None:
    """llama.cpp and vLLM read no ``softmax_scale``."""
    config = AlibiGPTConfig(use_bias=False, hidden_size=48, num_attention_heads=3, attention_scale=0.5)
    assert from_alibi_gpt(config).attn_config.softmax_scale == 0.5
    with pytest.raises(ValueError, match="attention_scale is 0.5 \\(it must be None or 0.25\\)"):
        from_alibi_gpt(config, as_transformers=False)


def test_a_reader_is_one_of_an_mpt() -> None:
    with pytest.raises(ValueError, match="'reader' must be 'transformers', 'llama.cpp' or 'vllm', got 'ollama'"):
        ConvertConfig(model="model", output_dir="out", to="mpt", reader="ollama")
    with pytest.raises(ValueError, match="reader is for conversions to mpt, not to bloom"):
        ConvertConfig(model="model", output_dir="out", to="bloom", reader="vllm")


def test_a_model_that_did_without_a_cache_generates_with_one(tmp_path: Path) -> None:
    """Published MPTs say ``use_cache: false``, in config.json and in generation_config.json."""
    original = mpt(8, use_cache=False)
    assert original.generation_config.use_cache is False
    ours = converted(original, tmp_path)
    assert ours.config.use_cache is True and ours.generation_config.use_cache is not False
    written = json.loads((tmp_path / "converted" / "generation_config.json").read_text(encoding="utf-8"))
    assert written["use_cache"] is True
