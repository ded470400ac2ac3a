"""BLOOM: the same bits out again, and what it cannot hold."""

from pathlib import Path

import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.bloom.modeling_bloom import bloom_gelu_forward

from modeling_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.checkpoints.convert.bloom import SAME_ACTS, from_alibi_gpt
from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert
from tests.support.conversion_cases import (
    assert_same_weights,
    bloom,
    converted,
    loaded,
)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_way_back_is_bit_exact(tied: bool, tmp_path: Path) -> None:
    original = bloom(12, tie_word_embeddings=tied, hidden_dropout=0.1, attention_dropout=0.2, layer_norm_epsilon=1e-4)
    converted(original, tmp_path)
    convert(ConvertConfig(model=str(tmp_path / "converted"), output_dir=str(tmp_path / "back"), to="bloom"))
    back = loaded(tmp_path / "back")
    assert_same_weights(original, back)
    before, after = original.config.to_dict(), back.config.to_dict()
    differing = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert differing <= {"_name_or_path", "seq_length"}


def test_the_activation_is_the_same_function() -> None:
    points = torch.linspace(-8, 8, 4001)
    expected = bloom_gelu_forward(points)
    for name in SAME_ACTS:
        assert (ACT2FN[name](points) - expected).abs().max() < 2e-6  # a few units of the last place of 8


def test_post_layernorm_residuals_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="apply_residual_connection_post_layernorm is True"):
        converted(bloom(apply_residual_connection_post_layernorm=True), tmp_path)
    assert not (tmp_path / "converted").exists()


def test_the_way_out_names_every_field_that_stands_in_the_way() -> None:
    config = AlibiGPTConfig(
        hidden_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        alibi_beta=2.0,
        alibi_bias_max=16,
        alibi_trainable="beta",
        alibi_scaling={"type": "linear", "factor": 2},
        alibi_bias_inside_scaling=True,
        qk_norm=True,
        clip_qkv=3.0,
        attention_scale=1.0,
        use_bias=False,
        intermediate_size=100,
        embd_pdrop=0.1,
    )
    with pytest.raises(ValueError) as refusal:
        from_alibi_gpt(config)
    for name in (
        *("num_key_value_heads", "alibi_beta", "alibi_bias_max", "alibi_trainable", "alibi_scaling", "qk_norm"),
        *("alibi_bias_inside_scaling", "clip_qkv", "attention_scale", "use_bias", "intermediate_size", "embd_pdrop"),
        *("embedding_layer_norm", "hidden_act"),
    ):
        assert f"{name} is " in str(refusal.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("position_method", "rope"), ("alibi_slope_kind", "uniform"), ("head_dim", 16), ("alibi_beta", 0.5)],
)
def test_the_way_out_refuses_what_bloom_cannot_hold(field: str, value: object) -> None:
    fields = {"embedding_layer_norm": True, "hidden_act": "gelu_new", "hidden_size": 48, "num_attention_heads": 4}
    from_alibi_gpt(AlibiGPTConfig(**fields))
    with pytest.raises(ValueError, match=f"cannot be a BLOOM: {field} is"):
        from_alibi_gpt(AlibiGPTConfig(**fields, **{field: value}))
