"""Benchmarks: turns are fair, ratios are within a turn, every way and model runs."""

import re
import time
from pathlib import Path

import pytest
import torch

from alibi_gpt_cli.main import run_app
from benchmarks import converted
from benchmarks.__main__ import app
from benchmarks.attention import VARIANTS, AttentionCase, time_attention
from benchmarks.converted import ConvertedCase, max_logit_difference, time_converted
from benchmarks.models import MODELS, DecodeCase, ModelCase, time_decoding, time_models
from benchmarks.run import KINDS, BenchmarkConfig, run_benchmark
from benchmarks.timing import extra_bytes, summarize, time_interleaved
from modeling_alibi_gpt.runtime.config import build_config, load_config
from modeling_alibi_gpt.runtime.records import read_records


ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SMALL = {"num_layers": 1, "hidden_size": 48, "num_heads": 4, "vocab_size": 61}


def test_candidates_are_interleaved_after_a_round_to_warm_up() -> None:
    calls: list[str] = []
    seconds = time_interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, num_rounds=3)
    assert calls == list("abababab")
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_seconds_are_those_of_the_call() -> None:
    (values,) = time_interleaved({"sleep": lambda: time.sleep(0.05)}, num_rounds=2).values()
    assert min(values) >= 0.05


def test_ratios_are_taken_within_a_round() -> None:
    summary = summarize({"fast": [1.0, 2.0, 4.0], "slow": [3.0, 4.0, 4.0]}, "fast")
    assert summary["slow"]["times_reference"] == 2.0  # of 3, 2 and 1; medians alone would give 4 / 2
    assert summary["slow"]["times_reference_quartiles"] == [1.5, 2.5]
    assert summary["slow"]["seconds"] == 4.0
    assert summary["fast"]["times_reference"] == 1.0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_is_that_of_the_call() -> None:
    mebibyte = 2**20

    def many_small() -> None:
        _ = [torch.ones(mebibyte // 16, dtype=torch.uint8) for _ in range(16 * 64)]

    for _ in range(2):  # what the first call freed counts in the second as well
        taken = extra_bytes(many_small)
        assert 60 * mebibyte < taken < 80 * mebibyte


@pytest.mark.parametrize("mode", ["forward", "forward_backward"])
def test_every_way_is_right_and_timed(mode: str) -> None:
    # Flex attention has no gradients on a CPU.
    ways = [way for way in VARIANTS if (way, mode) != ("flex", "forward_backward")]
    case = AttentionCase(lengths_tokens=[65, 130], num_heads=3, ways=ways, mode=mode, num_rounds=1)
    records = list(time_attention(case, CPU))
    assert [record["name"] for record in records] == 2 * ways
    for record in records:
        assert record["max_error"] < 5e-6, record["name"]
        assert record["seconds"] > 0 and record["reference"] == "plain"


@pytest.mark.parametrize("mode", ["forward", "training_step"])
def test_every_model_is_timed(mode: str) -> None:
    case = ModelCase(**SMALL, length_tokens=20, models=list(MODELS), mode=mode, num_rounds=1)
    records = list(time_models(case, CPU))
    assert [record["name"] for record in records] == list(MODELS)
    assert all(record["reference"] == next(iter(MODELS)) for record in records)


def test_models_are_of_one_shape() -> None:
    case = ModelCase(**SMALL, length_tokens=20, models=list(MODELS))
    sizes = {name: make(case, 20).get_output_embeddings().weight.shape for name, make in MODELS.items()}
    assert set(sizes.values()) == {(61, 48)}


@pytest.mark.parametrize("mode", ["forward", "generate"])
@pytest.mark.parametrize("family", ["bloom", "mpt"])
def test_a_conversion_is_timed_beside_its_original(family: str, mode: str) -> None:
    case = ConvertedCase(**SMALL, family=family, length_tokens=20, mode=mode, num_new_tokens=3, num_rounds=1)
    original, *others = time_converted(case, CPU)
    assert original["name"] == family and original["times_reference"] == 1.0
    assert [record["name"] for record in others] == [
        f"{family} as AlibiGPT, {back_end}" for back_end in ("sdpa", "alibi_banded")
    ]
    assert all(0 < record["max_logit_difference"] < 1e-5 for record in others)


def test_a_conversion_with_other_logits_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converted, "max_logit_difference", lambda length_tokens: 0.0)
    case = ConvertedCase(**SMALL, family="bloom", length_tokens=20, num_rounds=1)
    with pytest.raises(ValueError, match="logits of the conversion differ by"):
        next(time_converted(case, CPU))


def test_the_recorded_conversions_compute_the_same() -> None:
    (path,) = (ROOT / "results").glob("speed_converted_*.jsonl")
    for record in read_records(path):
        assert record["max_logit_difference"] <= max_logit_difference(record["length_tokens"])


def test_decoding_is_timed_with_equal_logits() -> None:
    case = DecodeCase(**SMALL | {"num_heads": 8, "hidden_size": 128}, context_tokens=2500, num_rounds=2)
    full, windows = time_decoding(case, CPU)
    assert (full["name"], windows["name"]) == ("sdpa", "alibi_banded")
    assert windows["cache_bytes"] < full["cache_bytes"]
    # One layer that leaves out weights of 1e-6, and float32.
    assert windows["max_difference"] < 1e-4


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"ways": ["quick"]}, "ways: expected plain, .* got 'quick'"),
        ({"dtypes": ["int8"]}, r"'attention\[0\].dtypes\[0\]' must be 'float32', .* got 'int8'"),
        ({"mode": "sideways"}, "mode' must be 'forward' or 'forward_backward', got 'sideways'"),
        ({"lengths_tokens": []}, r"lengths_tokens' must be a list of at least 1, got \[\]"),
        ({"lengths_tokens": [8, 0]}, r"lengths_tokens\[1\]' must be at least 1, got 0"),
        ({"rounds": 3}, r"attention\[0\].rounds"),
    ],
)
def test_a_case_that_cannot_be_is_refused_before_anything_runs(case: dict, message: str, tmp_path: Path) -> None:
    fields = {"lengths_tokens": [8], "num_heads": 2, "ways": ["strips"]} | case
    values = {"output": str(tmp_path / "records.jsonl"), "attention": [fields]}
    with pytest.raises(ValueError, match=message):
        next(run_benchmark(build_config(BenchmarkConfig, values)))
    assert not list(tmp_path.iterdir())


def test_nothing_is_timed_on_red_tests_of_attention() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^bench: test-attention ", makefile, flags=re.MULTILINE)
    assert re.search(r"^test-attention:.*\n\t.* -m pytest .*tests/test_attention.py$", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("arguments", [["precision", "--bogus"], ["nonsense"], ["llama-cpp", "--model", "/nowhere"]])
def test_a_mistake_on_the_command_line_is_one_line(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, arguments, "python -m benchmarks") == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_records_are_written_as_they_come(tmp_path: Path) -> None:
    output = tmp_path / "records.jsonl"
    attention = {"lengths_tokens": [8, 9], "num_heads": 2, "ways": ["strips"], "num_rounds": 1}
    model = {**SMALL, "length_tokens": 8, "models": ["gpt2"], "num_rounds": 1}
    config = build_config(BenchmarkConfig, {"output": str(output), "attention": [attention], "models": [model]})
    for num_records, _ in enumerate(run_benchmark(config), start=1):
        assert len(read_records(output)) == num_records
    assert num_records == 5


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "benchmark").glob("*.yaml")), ids=lambda path: path.name)
def test_configs_are_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(BenchmarkConfig, str(path))
    assert any(getattr(config, name) for name in KINDS)
