"""The comparison of engines: its figures, and the table in the documentation, which is that of the records."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.engines import EnginesConfig, differences, gguf_type, measure_engines, table, with_exact_gelu
from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert
from modeling_alibi_gpt.checkpoints.gguf.export import export_gguf
from modeling_alibi_gpt.runtime.records import read_records


ROOT = Path(__file__).resolve().parents[2]


def test_figures_of_a_distribution_beside_another() -> None:
    """Two windows of three tokens: the last prediction of each has no target and counts for the KL alone."""
    windows = torch.tensor([[0, 1, 1], [1, 0, 0]])
    expected = torch.tensor([0.5, 0.5]).log().expand(6, 2)
    found = torch.tensor([[0.25, 0.75], [0.25, 0.75], [0.9, 0.1], [0.25, 0.75], [0.25, 0.75], [0.5, 0.5]]).log()
    figures = differences(found, expected, windows)
    nats = -(2 * math.log(0.75) + 2 * math.log(0.25)) / 4
    assert figures["nats_per_token"] == pytest.approx(nats)
    assert figures["perplexity"] == pytest.approx(math.exp(nats))
    kl = (4 * 0.5 * (math.log(0.5 / 0.25) + math.log(0.5 / 0.75)) + 0.5 * (math.log(0.5 / 0.9) + math.log(5))) / 6
    assert figures["kl_nats_per_token"] == pytest.approx(kl)
    assert figures["max_log_prob_difference_nats"] == pytest.approx(math.log(5))
    assert figures["likeliest_equal"] == pytest.approx(2 / 6)


def test_a_model_with_exact_gelu_leaves_the_first_as_it_is() -> None:
    sizes = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = AlibiGPTForCausalLM(AlibiGPTConfig(**sizes, hidden_act="gelu_pytorch_tanh"))
    changed = with_exact_gelu(model)
    states = torch.linspace(-3, 3, 100)
    torch.testing.assert_close(changed.model.layers[0].mlp.act_fn(states), nn.functional.gelu(states))
    assert not torch.equal(model.model.layers[0].mlp.act_fn(states), nn.functional.gelu(states))


def test_a_gguf_file_says_its_type(make_folder: Callable[[str], str], tmp_path: Path) -> None:
    for dtype, name in (("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")):
        path = str(tmp_path / f"{dtype}.gguf")
        export_gguf(make_folder("alibi"), path, dtype=dtype)
        assert gguf_type(path) == name


def test_the_table_of_the_documentation_is_that_of_the_records() -> None:
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    assert table(read_records(ROOT / "results" / "engines_cpu2_20261127.jsonl")) in page


@pytest.mark.integrations
def test_every_engine_is_measured(make_folder: Callable[[str], str], source: str, tmp_path: Path) -> None:
    for package in ("ctranslate2", "xllamacpp"):
        pytest.importorskip(package)
    model, file, output = tmp_path / "ours", str(tmp_path / "model.gguf"), tmp_path / "engines.jsonl"
    convert(ConvertConfig(model=make_folder("mpt"), output_dir=str(model)))
    export_gguf(model, file, dtype="float16", context_length_tokens=64)
    sizes = {"window_tokens": 24, "num_windows": 2}
    config = EnginesConfig(
        model=str(model), family="mpt", gguf_files=[file], source=source, output=str(output), **sizes
    )
    records = measure_engines(config)
    assert read_records(output) == records
    found = {(record["engine"], record["weights"]): record["kl_nats_per_token"] for record in records}
    assert list(found) == [
        *(("PyTorch", "float32"), ("llama.cpp", "F16"), ("CTranslate2", "float32"), ("CTranslate2", "int8")),
    ]
    assert found["PyTorch", "float32"] == 0
    assert abs(found["CTranslate2", "float32"]) < 1e-9 < found["CTranslate2", "int8"]
    assert {record["num_tokens"] for record in records} == {46}
