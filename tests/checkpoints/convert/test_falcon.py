"""Falcon with ALiBi: exact where its bfloat16 slopes are, and how far off they are elsewhere."""

from pathlib import Path

import pytest
import torch
from transformers.models.falcon import modeling_falcon

from modeling_alibi_gpt.alibi import alibi_slopes
from tests.support.conversion_cases import TOLERANCE, converted, falcon, largest_difference


def use_bias_without_rounding(monkeypatch: pytest.MonkeyPatch, slopes: torch.Tensor) -> None:
    def build(attention_mask: torch.Tensor, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
        positions = (attention_mask.cumsum(dim=-1) - 1) * attention_mask
        return (slopes[:, None] * positions[:, None, :]).reshape(-1, 1, positions.shape[-1]).to(dtype)

    monkeypatch.setattr(modeling_falcon, "build_alibi_tensor", build)


# 8 and 6 heads: slopes are powers of two, and their products with positions up to 256 are exact in bfloat16.
@pytest.mark.parametrize("multi_query", [True, False], ids=["multi-query", "multi-head"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("num_heads", [8, 6])
def test_logits_are_those_of_the_original(
    num_heads: int, bias: bool, tied: bool, multi_query: bool, tmp_path: Path
) -> None:
    original = falcon(num_heads, tie_word_embeddings=tied, multi_query=multi_query, bias=bias)
    ours = converted(original, tmp_path)
    assert ours.config.num_key_value_heads == (1 if multi_query else num_heads)
    for padded in (False, True):
        assert largest_difference(original, ours, padded=padded) < TOLERANCE


@pytest.mark.parametrize("num_heads", [12, 16])
def test_other_numbers_of_heads_differ_by_the_originals_rounding_alone(
    num_heads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the original's bias computed without rounding, its logits are ours."""
    original = falcon(num_heads)
    ours = converted(original, tmp_path)
    difference = largest_difference(original, ours, padded=False)
    assert 1e-4 < difference < 0.1
    use_bias_without_rounding(monkeypatch, alibi_slopes(num_heads))
    assert largest_difference(original, ours, padded=False) < TOLERANCE


def test_the_originals_rounding_cannot_be_reproduced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as_transformers cannot be used with a Falcon"):
        converted(falcon(12), tmp_path, as_transformers=True)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"parallel_attn": True}, ["parallel_attn"]),
        ({"new_decoder_architecture": True}, ["new_decoder_architecture"]),
        ({"alibi": False, "parallel_attn": True}, ["alibi", "parallel_attn"]),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(
    fields: dict[str, bool], names: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="this Falcon cannot be an AlibiGPT") as refusal:
        converted(falcon(**fields), tmp_path)
    assert all(f"{name} is {fields[name]}" in str(refusal.value) for name in names)
