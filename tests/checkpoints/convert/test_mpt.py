"""MPT both ways, in both flavours, and its slopes where transformers and its config disagree."""

import json
from pathlib import Path

import pytest
import torch
from transformers import MptForCausalLM
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.alibi import alibi_slopes
from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert
from modeling_alibi_gpt.checkpoints.convert.mpt import MptWithBiases, engines_that_differ, from_alibi_gpt
from modeling_alibi_gpt.checkpoints.load import load_causal_lm
from tests.support.conversion_cases import (
    TOLERANCE,
    VOCAB_SIZE,
    WIDTH,
    assert_same_weights,
    converted,
    largest_difference,
    loaded,
    mpt,
    random_weights,
)


SIZES = {"vocab_size": VOCAB_SIZE, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 8}


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


def test_attention_dropout_is_refused_with_the_remedy() -> None:
    config = AlibiGPTConfig(use_bias=False, hidden_size=48, num_attention_heads=4, attention_dropout=0.1)
    for as_transformers in (True, False):
        with pytest.raises(
            ValueError, match=r"attention_dropout is 0.1 .*: set attention_dropout to 0 in config.json$"
        ):
            from_alibi_gpt(config, as_transformers)


def test_slopes_that_transformers_would_not_compute_are_for_llm_foundry_only(tmp_path: Path) -> None:
    original = converted(mpt(6, attn_config={"alibi_bias_max": 16}), tmp_path)
    options = {"model": str(tmp_path / "converted"), "output_dir": str(tmp_path / "back"), "to": "mpt"}
    with pytest.raises(ValueError, match="is 16, but MPT in transformers always uses 8; .* --flavour llm-foundry"):
        convert(ConvertConfig(**options))
    assert not (tmp_path / "back").exists()
    convert(ConvertConfig(**options, flavour="llm-foundry"))
    back = loaded(tmp_path / "back")
    assert back.config.attn_config.alibi_bias_max == 16
    assert largest_difference(original, back, padded=False) > 0.01, "transformers still ignores it"


def test_llm_foundry_writes_its_own_class_and_fields(tmp_path: Path) -> None:
    """What vLLM, CTranslate2 and llama.cpp's converter read: nested plain fields under the class of llm-foundry."""
    original = mpt(attn_config={"clip_qkv": 6.0}, resid_pdrop=0.1)
    converted(original, tmp_path)
    options = {"model": str(tmp_path / "converted"), "to": "mpt", "flavour": "llm-foundry"}
    convert(ConvertConfig(**options, output_dir=str(tmp_path / "out")))
    written = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert written["architectures"] == ["MPTForCausalLM"] and written["model_type"] == "mpt"
    assert written["attn_config"] == {
        "alibi": True,
        "alibi_bias_max": 8,
        "attn_impl": "torch",
        "attn_pdrop": 0,
        "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False,
        "clip_qkv": 6.0,
        "prefix_lm": False,
        "qk_ln": False,
        "softmax_scale": None,
    }
    assert {"d_model": 96, "n_heads": 8, "n_layers": 2, "max_seq_len": 64, "vocab_size": 64}.items() <= written.items()
    assert {"expansion_ratio": 4, "no_bias": True, "embedding_fraction": 1.0}.items() <= written.items()
    assert written["norm_type"] == "low_precision_layernorm" and written["resid_pdrop"] == 0.1
    assert_same_weights(original, loaded(tmp_path / "out"))
    again = ConvertConfig(model=str(tmp_path / "out"), output_dir=str(tmp_path / "again"))
    convert(again)
    assert_same_weights(loaded(tmp_path / "converted"), loaded(tmp_path / "again"))


def test_biases_are_for_llm_foundry(tmp_path: Path) -> None:
    """The default architecture, biases included, computes the same as an MPT with biases."""
    original = random_weights(AlibiGPTForCausalLM(AlibiGPTConfig(**SIZES)))
    original.save_pretrained(tmp_path / "ours")
    options = {"model": str(tmp_path / "ours"), "output_dir": str(tmp_path / "out"), "to": "mpt"}
    with pytest.raises(
        ValueError, match="use_bias is True .*servable_mpt.json can be converted, and --flavour llm-foundry"
    ):
        convert(ConvertConfig(**options))
    result = convert(ConvertConfig(**options, flavour="llm-foundry"))
    assert set(result["differs_in"]) == {"transformers", "CTranslate2"}
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["no_bias"] is False
    model, loading = MptWithBiases.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values()), loading
    for padded in (False, True):
        assert largest_difference(original, model.eval(), padded=padded) < TOLERANCE
    assert largest_difference(original, loaded_without_biases(tmp_path / "out"), padded=False) > 0.01
    convert(ConvertConfig(model=str(tmp_path / "out"), output_dir=str(tmp_path / "back")))
    assert_same_weights(original, load_causal_lm(tmp_path / "back"))
    with pytest.raises(ValueError, match="no_bias is False"):
        convert(ConvertConfig(model=str(tmp_path / "out"), output_dir=str(tmp_path / "no"), as_transformers=True))


def loaded_without_biases(folder: Path) -> MptForCausalLM:
    """As transformers loads it."""
    return MptForCausalLM.from_pretrained(folder).eval()


def test_engines_that_leave_something_out_are_named() -> None:
    sizes = {"use_bias": False, "hidden_size": 48, "num_attention_heads": 3}
    assert engines_that_differ(AlibiGPTConfig(**sizes)) == {}
    fields = {"tie_word_embeddings": False, "alibi_bias_max": 16, "clip_qkv": 2.0}
    assert engines_that_differ(AlibiGPTConfig(**sizes, **fields)) == {
        "transformers": "alibi_bias_max",
        "vLLM": "tie_word_embeddings",
        "CTranslate2": "alibi_bias_max, tie_word_embeddings, clip_qkv",
    }


@pytest.mark.parametrize(
    ("field", "value", "expected"), [("attention_scale", 0.5, 0.25), ("layer_norm_epsilon", 1e-6, 1e-5)]
)
def test_readers_of_llm_foundry_have_one_scale_and_one_epsilon(field: str, value: float, expected: float) -> None:
    """llama.cpp, vLLM and CTranslate2 read no ``softmax_scale`` and no epsilon of an MPT."""
    config = AlibiGPTConfig(use_bias=False, hidden_size=48, num_attention_heads=3, **{field: value})
    from_alibi_gpt(config)
    with pytest.raises(ValueError, match=f"{field} is {value} \\(it must be .*{expected}\\)"):
        from_alibi_gpt(config, as_transformers=False)


def test_a_flavour_is_one_of_an_mpt() -> None:
    with pytest.raises(ValueError, match="'flavour' must be 'transformers' or 'llm-foundry', got 'vllm'"):
        ConvertConfig(model="model", output_dir="out", to="mpt", flavour="vllm")
    with pytest.raises(ValueError, match="flavour applies to conversions to mpt, not to bloom"):
        ConvertConfig(model="model", output_dir="out", to="bloom", flavour="llm-foundry")


def test_a_model_that_did_without_a_cache_generates_with_one(tmp_path: Path) -> None:
    """Published MPTs say ``use_cache: false``, in config.json and in generation_config.json."""
    original = mpt(8, use_cache=False)
    assert original.generation_config.use_cache is False
    ours = converted(original, tmp_path)
    assert ours.config.use_cache is True and ours.generation_config.use_cache is not False
    written = json.loads((tmp_path / "converted" / "generation_config.json").read_text(encoding="utf-8"))
    assert written["use_cache"] is True
