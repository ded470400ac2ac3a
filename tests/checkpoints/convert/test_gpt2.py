"""GPT-2: exact with its learned positions, and a start for fine-tuning with ALiBi without them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert
from tests.support.conversion_cases import TOLERANCE, converted, gpt2, largest_difference


def test_other_sizes_and_scales_come_along(tmp_path: Path) -> None:
    original = gpt2(n_inner=40, scale_attn_weights=False, activation_function="relu", resid_pdrop=0.2, attn_pdrop=0.3)
    ours = converted(original, tmp_path)
    assert (ours.config.intermediate_size, ours.config.attention_scale) == (40, 1.0)
    assert (ours.config.resid_pdrop, ours.config.attention_dropout, ours.config.embd_pdrop) == (0.2, 0.3, 0.1)
    assert largest_difference(original, ours, padded=True) < TOLERANCE


def test_a_retrofit_leaves_out_the_positions_and_nothing_else(tmp_path: Path) -> None:
    original = gpt2()
    exact = converted(original, tmp_path)
    result = convert(
        ConvertConfig(
            model=str(tmp_path / "original"),
            output_dir=str(tmp_path / "retrofit"),
            overrides={"position_method": "alibi", "alibi_beta": 0.5},
        )
    )
    assert result["left_out"] == ["wpe.weight"]
    kept, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("retrofit", "converted"))
    assert set(whole) - set(kept) == {"model.position_method.embedding.weight"}
    assert all(torch.equal(kept[name], whole[name]) for name in kept)
    retrofit = type(exact).from_pretrained(tmp_path / "retrofit")
    assert (retrofit.config.position_method, retrofit.config.alibi_beta) == ("alibi", 0.5)
    # It has no longest length any more.
    assert retrofit(torch.zeros(1, 2 * exact.config.train_context_length, dtype=torch.long)).logits.isfinite().all()


def test_a_retrofit_to_positions_with_weights_of_their_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lack model.position_method.bucket_bias"):
        converted(gpt2(), tmp_path, overrides={"position_method": "t5"})


def test_masks_and_prefixes_of_old_checkpoints_are_no_weights(tmp_path: Path) -> None:
    """As published: no prefix of the base model, no output layer, and the causal mask of every layer."""
    original = gpt2()
    original.save_pretrained(tmp_path / "original")
    path = tmp_path / "original" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    for layer_idx in range(2):
        tensors[f"h.{layer_idx}.attn.bias"] = torch.ones(1, 1, 48, 48).tril().bool()
        tensors[f"h.{layer_idx}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, path, metadata={"format": "pt"})
    convert(ConvertConfig(model=str(tmp_path / "original"), output_dir=str(tmp_path / "converted")))
    ours = converted(original, tmp_path / "again")
    stored = load_file(tmp_path / "converted" / "model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in ours.state_dict().items() if name in stored)


@pytest.mark.parametrize("field", ["scale_attn_by_inverse_layer_idx", "add_cross_attention"])
def test_what_cannot_be_represented_is_refused_by_name(field: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"cannot be an AlibiGPT: {field} is True"):
        converted(gpt2(**{field: True}), tmp_path)
