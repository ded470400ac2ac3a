"""Layouts of fused tensors, plans that leave nothing over, and weights that never lie in memory all at once."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert
from modeling_alibi_gpt.checkpoints.weight_map import (
    Layout,
    module_rules,
    rows_by_head,
    stacked_rows,
    transposed,
    zero_bias_rules,
)
from tests.support.conversion_cases import assert_same_weights, bloom, converted, gpt2, mpt


NUM_HEADS, HEAD_DIM, WIDTH = 3, 4, 12


@pytest.mark.parametrize("trailing", [(), (WIDTH,)], ids=["bias", "weight"])
def test_rows_by_head_are_those_of_the_definition(trailing: tuple[int, ...]) -> None:
    fused = torch.randn(NUM_HEADS * 3 * HEAD_DIM, *trailing)
    layout = rows_by_head(NUM_HEADS)
    parts = layout.to_ours([fused])
    for part_idx, part in enumerate(parts):
        for head in range(NUM_HEADS):
            for row in range(HEAD_DIM):
                expected = fused[(head * 3 + part_idx) * HEAD_DIM + row]
                assert torch.equal(part[head * HEAD_DIM + row], expected)
    assert torch.equal(layout.to_foreign(parts)[0], fused)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (stacked_rows(12, 12, 12), (36, WIDTH)),
        (stacked_rows(12, 4, 4), (20,)),
        (transposed(stacked_rows(12, 12, 12)), (WIDTH, 36)),
    ],
)
def test_splitting_and_fusing_are_inverse(layout: Layout, shape: tuple[int, ...]) -> None:
    fused = torch.randn(shape)
    parts = layout.to_ours([fused])
    assert len(parts) == 3 and all(part.shape[1:] == ((WIDTH,) if len(shape) == 2 else ()) for part in parts)
    assert torch.equal(layout.to_foreign(parts)[0], fused)


def test_missing_biases_become_zeros() -> None:
    (rule,) = zero_bias_rules(module_rules({"dense": "o_proj"}, ["weight"]))
    assert rule.foreign == ("dense.weight",) and rule.ours == ("o_proj.weight", "o_proj.bias")
    weight, bias = rule.layout.to_ours([torch.ones(2, 3, dtype=torch.bfloat16)])
    assert weight.sum() == 6 and bias.dtype == torch.bfloat16 and bias.tolist() == [0, 0]


def edit_weights(folder: Path, **changes: Tensor | None) -> None:
    """Replace tensors of a folder, or remove those that are None; dots in names are written as two underscores."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("field", "name"),
    [("use_bias", r"model\.layers\.0\.\S+\.bias"), ("embedding_layer_norm", r"model\.embedding_norm\.\S+")],
)
def test_an_override_cannot_drop_weights(field: str, name: str, tmp_path: Path) -> None:
    bloom().save_pretrained(tmp_path / "original")
    config = ConvertConfig(
        model=str(tmp_path / "original"), output_dir=str(tmp_path / "converted"), overrides={field: False}
    )
    with pytest.raises(ValueError, match=f"has no place for .*{name}"):
        convert(config)
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("transformer__h__9__mlp__extra", torch.ones(3), r"no equivalent of the weights h\.9\.mlp\.extra"),
        ("score__weight", torch.ones(2, 96), r"no equivalent of the weights score\.weight"),
        ("transformer__ln_f__bias", None, r"lack model\.norm\.bias, which the target model needs"),
        ("transformer__ln_f__bias", torch.ones(7), r"would give model\.norm\.bias the shape \(7,\), .* \(96,\)"),
        (
            "transformer__h__0__self_attention__query_key_value__weight",
            torch.ones(7, 96),
            r"does not match .*\(7, 96\)",
        ),
        ("transformer__ln_f__bias", torch.ones(96, dtype=torch.int8), r"ln_f\.bias is int8, expected one of float64"),
        ("lm_head__weight", torch.ones(64, 96), r"lm_head\.weight differs from word_embeddings\.weight"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_written(
    name: str, tensor: Tensor | None, message: str, tmp_path: Path
) -> None:
    bloom().save_pretrained(tmp_path / "original")
    edit_weights(tmp_path / "original", **{name: tensor})
    config = ConvertConfig(model=str(tmp_path / "original"), output_dir=str(tmp_path / "converted"))
    with pytest.raises(ValueError, match=message):
        convert(config)
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_a_stored_output_layer_that_equals_the_embedding_is_the_embedding(tmp_path: Path) -> None:
    original = bloom()
    original.save_pretrained(tmp_path / "original")
    edit_weights(tmp_path / "original", lm_head__weight=original.lm_head.weight.detach().clone())
    convert(ConvertConfig(model=str(tmp_path / "original"), output_dir=str(tmp_path / "converted")))
    assert "lm_head.weight" not in load_file(tmp_path / "converted" / "model.safetensors")


@pytest.mark.parametrize("make", [bloom, mpt, gpt2])
def test_shards_hold_what_one_file_holds(make, tmp_path: Path) -> None:
    """From shards, to other shards, in the form that transformers reads."""
    original = make()
    whole = converted(original, tmp_path)
    original.save_pretrained(tmp_path / "sharded", max_shard_size=150_000)
    limit = 200_000
    convert(ConvertConfig(model=str(tmp_path / "sharded"), output_dir=str(tmp_path / "out"), max_shard_bytes=limit))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    assert len(files) > 2 and sorted(set(index["weight_map"].values())) == files
    sizes = []
    for name in files:
        tensors = load_file(tmp_path / "out" / name)
        assert {key for key, file in index["weight_map"].items() if file == name} == set(tensors)
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()))
        with safe_open(tmp_path / "out" / name, "pt") as file:
            assert file.metadata() == {"format": "pt"}
    assert max(sizes) <= limit and sum(sizes) == index["metadata"]["total_size"]
    assert_same_weights(type(whole).from_pretrained(tmp_path / "out"), whole)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_dtypes_are_kept_unless_another_is_asked_for(dtype: str | None, tmp_path: Path) -> None:
    ours = converted(gpt2().half(), tmp_path, dtype=dtype)
    expected = torch.bfloat16 if dtype else torch.float16
    assert ours.config.dtype == expected and {tensor.dtype for tensor in ours.state_dict().values()} == {expected}


def test_a_checkpoint_may_be_larger_than_memory(tmp_path: Path) -> None:
    """Peak memory grows by a shard and a few tensors, not by the checkpoint."""
    num_layers, width, shard_bytes = 16, 512, 16 * 2**20
    fields = {"hidden_size": width, "n_layer": num_layers, "n_head": 8, "vocab_size": 64}
    (tmp_path / "original").mkdir()
    write_sharded_bloom(tmp_path / "original", fields)
    checkpoint_bytes = sum(path.stat().st_size for path in (tmp_path / "original").iterdir())
    assert checkpoint_bytes > 12 * shard_bytes
    convert_it = ConvertConfig(
        model=str(tmp_path / "original"), output_dir=str(tmp_path / "converted"), max_shard_bytes=shard_bytes
    )
    before = reset_peak_memory()
    convert(convert_it)
    assert peak_memory() - before < checkpoint_bytes / 3


def write_sharded_bloom(folder: Path, fields: dict[str, int]) -> None:
    """A checkpoint of zeros, one file a layer."""
    width, files = fields["hidden_size"], {}
    shapes = {"word_embeddings.weight": (fields["vocab_size"], width)}
    for norm in ("word_embeddings_layernorm", "ln_f"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    files["first.safetensors"] = shapes
    sizes = {"self_attention.query_key_value": (3, 1), "self_attention.dense": (1, 1)}
    sizes |= {"mlp.dense_h_to_4h": (4, 1), "mlp.dense_4h_to_h": (1, 4)}
    for layer_idx in range(fields["n_layer"]):
        shapes = {}
        for name, (rows, columns) in sizes.items():
            shapes[f"h.{layer_idx}.{name}.weight"] = (rows * width, columns * width)
            shapes[f"h.{layer_idx}.{name}.bias"] = (rows * width,)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"h.{layer_idx}.{norm}.{parameter}": (width,) for parameter in ("weight", "bias")}
        files[f"layer-{layer_idx}.safetensors"] = shapes
    for name, shapes in files.items():
        save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, folder / name)
    index = {"weight_map": {key: name for name, shapes in files.items() for key in shapes}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "bloom", **fields}), encoding="utf-8")


def reset_peak_memory() -> int:
    """Bytes of memory now, from which on the system looks for the peak anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        pytest.skip("the system does not measure peaks of memory")
    return peak_memory()


def peak_memory() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
