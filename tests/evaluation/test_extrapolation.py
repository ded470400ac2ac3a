"""The length grid: every row over the same tokens, failures as rows, and what is finished is not done again."""

import dataclasses
import importlib.util
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_alibi_gpt.evaluation import grid
from modeling_alibi_gpt.evaluation.extrapolation import (
    ExtrapolationConfig,
    position_bins,
    run_extrapolation,
)
from modeling_alibi_gpt.evaluation.grid import shortest_names
from modeling_alibi_gpt.evaluation.measurement import block_nats
from modeling_alibi_gpt.evaluation.perplexity import PerplexityConfig, evaluate_perplexity
from modeling_alibi_gpt.evaluation.scoring import WindowScores
from modeling_alibi_gpt.evaluation.windows import plan_windows
from modeling_alibi_gpt.report.tables import extrapolation_table, table_text
from modeling_alibi_gpt.runtime.records import read_records


ROOT = Path(__file__).resolve().parents[2]
FIELDS = [
    *("kind", "name", "model", "position_method", "overrides", "protocol", "length_tokens", "stride_tokens"),
    *("nats_per_token", "perplexity", "bits_per_byte", "num_tokens", "num_bytes"),
    *("train_context_length", "error", "nats_by_position", "nats_per_token_by_block", "provenance"),
]
FIGURES = FIELDS[8:13]


def without_time(rows: list[dict]) -> list[dict]:
    return [row | {"provenance": row["provenance"] | {"time_utc": None}} for row in rows]


@pytest.fixture
def config(make_folder, source: str, tmp_path) -> ExtrapolationConfig:
    return ExtrapolationConfig(
        models=[make_folder("alibi"), make_folder("learned"), make_folder("mpt")],
        source=source,
        lengths_tokens=[32, 8],
        output=str(tmp_path / "rows.jsonl"),
    )


@pytest.fixture
def no_loading(monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("a finished grid needs no weights")

    monkeypatch.setattr(grid, "load_causal_lm", refuse)


def test_overrides_change_what_is_read_and_have_rows_of_their_own(config: ExtrapolationConfig):
    plain = dataclasses.replace(config, models=config.models[:1], lengths_tokens=[32])
    flatter = dataclasses.replace(plain, overrides={"alibi_scaling": {"type": "linear", "factor": 8}})
    first, scaled = run_extrapolation(plain), run_extrapolation(flatter)
    assert all(row["overrides"] == {} for row in first)
    assert all(one["nats_per_token"] != other["nats_per_token"] for one, other in zip(first, scaled, strict=True))
    assert run_extrapolation(plain) == first and run_extrapolation(flatter) == scaled
    with pytest.raises(ValueError, match="alibi_betta"):
        run_extrapolation(dataclasses.replace(plain, overrides={"alibi_betta": 2.0}))
    with pytest.raises(ValueError, match="must be a finite number"):
        run_extrapolation(dataclasses.replace(plain, overrides={"alibi_scaling": {"type": "linear", "factor": 0}}))


def test_grid_has_a_row_for_every_model_protocol_and_length(config: ExtrapolationConfig):
    rows = run_extrapolation(config)
    assert [(row["name"], row["protocol"], row["length_tokens"]) for row in rows] == [
        (name, protocol, length)
        for name in ("alibi", "learned", "mpt")
        for protocol in ("nonoverlapping", "sliding")
        for length in (8, 32)
    ]
    assert all(row.keys() == set(FIELDS) for row in rows)
    assert [row["stride_tokens"] for row in rows[:4]] == [None, None, 2, 8]
    assert {row["train_context_length"] for row in rows} == {16}
    measured = [row for row in rows if row["error"] is None]
    assert len({(row["num_tokens"], row["num_bytes"]) for row in measured}) == 1
    for row in measured:
        assert len(row["nats_per_token_by_block"]) == 16
        assert np.mean(row["nats_per_token_by_block"]) == pytest.approx(row["nats_per_token"], rel=0.01)
        bins = row["nats_by_position"]
        assert sum(bins["num_tokens"]) == row["num_tokens"]
        assert np.dot(bins["nats_per_token"], bins["num_tokens"]) == pytest.approx(
            row["nats_per_token"] * row["num_tokens"], rel=1e-12
        )
    assert read_records(config.output) == rows


def test_rows_agree_with_the_perplexity_of_one_model(config: ExtrapolationConfig):
    row = run_extrapolation(config)[3]
    record = evaluate_perplexity(
        PerplexityConfig(model=config.models[0], source=config.source, length_tokens=32, protocol="sliding")
    )
    assert {key: row[key] for key in FIGURES} == {key: record[key] for key in FIGURES}


def test_models_that_end_are_rows_that_say_why(config: ExtrapolationConfig):
    rows = {(row["name"], row["protocol"], row["length_tokens"]): row for row in run_extrapolation(config)}
    for protocol in ("nonoverlapping", "sliding"):
        learned, mpt = rows["learned", protocol, 32], rows["mpt", protocol, 32]
        assert "learned positions end at train_context_length = 16" in learned["error"]
        assert mpt["error"].endswith(": the model probably ends at the 16 tokens in its config, and 32 were read")
        for row in (learned, mpt):
            assert [row[key] for key in [*FIGURES, "nats_by_position", "nats_per_token_by_block"]] == [None] * 7
        for name in ("alibi", "learned", "mpt"):
            assert rows[name, protocol, 8]["error"] is None
    table = table_text(extrapolation_table(list(rows.values())))
    assert "failed (1)" in table
    assert "(1) learned: learned positions end" in table


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), IndexError("far")])
def test_running_out_of_memory_is_a_row_too(config: ExtrapolationConfig, monkeypatch, error: Exception):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("modeling_alibi_gpt.evaluation.scoring._score_batch", fail)
    assert {row["error"] for row in run_extrapolation(config)} == {str(error) or type(error).__name__}


def test_a_loss_that_is_no_number_is_a_row_too(config: ExtrapolationConfig, make_folder, tmp_path):
    folder = tmp_path / "nan"
    shutil.copytree(make_folder("alibi"), folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].fill_(math.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    rows = run_extrapolation(ExtrapolationConfig(models=[str(folder)], source=config.source, output=config.output))
    assert {row["error"] for row in rows} == {"the loss is nan nats per token, which gives no finite perplexity"}


def test_finished_rows_are_not_computed_again(config: ExtrapolationConfig, request):
    rows = run_extrapolation(config)
    content = Path(config.output).read_bytes()
    request.getfixturevalue("no_loading")
    seen = []
    assert run_extrapolation(config, on_row=seen.append) == rows == seen
    assert Path(config.output).read_bytes() == content


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "extrapolation"}', "a record of kind extrapolation needs provenance, name, "),
        ('{"name": "alibi"}', "got a record of kind None"),
    ],
)
def test_an_incomplete_row_is_refused_by_file_and_line(
    config: ExtrapolationConfig, no_loading: None, line: str, message: str
):
    Path(config.output).write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{re.escape(config.output)} line 1: {message}"):
        run_extrapolation(config)
    assert Path(config.output).read_text(encoding="utf-8") == f"{line}\n"


@pytest.mark.parametrize("change", ["weights", "text", "dtype", "stride_tokens", "names"])
def test_what_changed_is_measured_again(config: ExtrapolationConfig, make_folder, tmp_path, text: str, change: str):
    folder, text_path = tmp_path / "alibi", tmp_path / "text.txt"
    shutil.copytree(make_folder("alibi"), folder)
    text_path.write_text(text, encoding="utf-8")
    settings = {"models": [str(folder)], "source": f"text:{text_path}", "lengths_tokens": [8], "output": config.output}
    run_extrapolation(ExtrapolationConfig(**settings))
    if change == "weights":
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"] *= 2
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    elif change == "text":
        text_path.write_text(text + "more\n", encoding="utf-8")
    else:
        settings[change] = {"dtype": "bfloat16", "stride_tokens": 3, "names": ["other"]}[change]
    run_extrapolation(ExtrapolationConfig(**settings))
    # A stride concerns the sliding row only.
    assert len(read_records(config.output)) == (3 if change == "stride_tokens" else 4)


def test_a_killed_grid_goes_on_where_it_stopped(config: ExtrapolationConfig, tmp_path, monkeypatch):
    straight = run_extrapolation(config)
    output = tmp_path / "killed.jsonl"
    killed = ExtrapolationConfig(**{**vars(config), "output": str(output)})

    def stop_after_three(row: dict) -> None:
        if len(read_records(output)) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_extrapolation(killed, on_row=stop_after_three)
    with output.open("ab") as file:
        file.write(b'{"kind": "extrapolation", "na')  # what a kill in the middle of a write leaves
    resumed = run_extrapolation(killed)
    assert without_time(resumed) == without_time(straight)
    assert read_records(output) == resumed


def test_lengths_default_to_multiples_of_the_training_length(config: ExtrapolationConfig):
    rows = run_extrapolation(
        ExtrapolationConfig(
            models=config.models[:1], source=config.source, output=config.output, protocols=["sliding"]
        )
    )
    assert [row["length_tokens"] for row in rows] == [16, 32, 64, 128, 256]


def test_blocks_are_consecutive_parts_of_the_text():
    scores = WindowScores(length_tokens=8, windows=[], token_nats=np.arange(32.0))
    assert block_nats(scores) == [2 * number + 0.5 for number in range(16)]


def test_position_bins_are_means_over_powers_of_two():
    windows = plan_windows(24, length_tokens=10, protocol="nonoverlapping")
    scores = WindowScores(length_tokens=10, windows=windows, token_nats=np.arange(23.0))
    assert position_bins(scores) == {
        "edges_tokens": [0, 1, 2, 4, 8, 10],
        # Positions 0, 1 and 2 are scored in windows that begin at 0, 10 and 20; the others in two.
        "nats_per_token": [10.0, 11.0, (2 + 12 + 22 + 3 + 13) / 5, 10.5, 13.5],
        "num_tokens": [3, 3, 5, 8, 4],
    }


@pytest.mark.parametrize("length, edges", [(1, [0, 1]), (2, [0, 1, 2]), (3, [0, 1, 2, 3]), (8, [0, 1, 2, 4, 8])])
def test_bins_end_at_the_length(length: int, edges: list[int]):
    windows = plan_windows(length + 1, length_tokens=length, protocol="nonoverlapping")
    bins = position_bins(WindowScores(length_tokens=length, windows=windows, token_nats=np.ones(length)))
    assert bins["edges_tokens"] == edges
    assert sum(bins["num_tokens"]) == length


def test_names_are_as_long_as_they_must_be():
    assert shortest_names(["/a/x", "/b/y"]) == ["x", "y"]
    assert shortest_names(["/a/x/model", "/a/y/model/"]) == ["x/model", "y/model"]
    with pytest.raises(ValueError, match="different folders"):
        shortest_names(["/a/x", "/a/../a/x"])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"models": []}, "models must be a list of one or more different values"),
        ({"lengths_tokens": []}, "lengths_tokens must be a list of one or more different values"),
        ({"lengths_tokens": [64, 64]}, "lengths_tokens must be a list of one or more different values"),
        ({"protocols": ["sliding", "sliding"]}, "protocols must be a list of one or more different values"),
        ({"protocols": ["slide"]}, "protocol must be one of nonoverlapping, sliding"),
        ({"names": ["a", "a", "b"]}, "names must be unique, one for each of the 3 models"),
        ({"lengths_tokens": [8, 0]}, "length_tokens must be at least 1, got 0"),
        ({"lengths_tokens": [8, 32], "stride_tokens": 9}, "in 1..8"),
        ({"protocols": ["nonoverlapping"], "stride_tokens": 4}, "stride_tokens=4 needs protocol=sliding"),
        ({"lengths_tokens": [8, 10**6]}, "a window of 1000000 needs 1000001"),
        ({"models": ["/nowhere"]}, "/nowhere: no model here"),
    ],
)
def test_impossible_grids_are_refused_before_anything_is_written(
    config: ExtrapolationConfig, no_loading, settings: dict, message: str
):
    with pytest.raises(ValueError, match=message):
        run_extrapolation(ExtrapolationConfig(**{**vars(config), **settings}))
    assert not Path(config.output).exists()


def test_script_ends_with_the_rows_in_short(config: ExtrapolationConfig, capsys):
    spec = importlib.util.spec_from_file_location("extrapolate_script", ROOT / "scripts" / "extrapolate.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    arguments = ["--config", str(ROOT / "configs/evaluation/length_extrapolation.yaml"), "--data", config.source]
    arguments += ["--models", *config.models, "--lengths", "8", "32", "--output", config.output]
    assert script.main([*arguments, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert (result["output"], result["num_rows"]) == (config.output, 12)
    fields = ("name", "protocol", "length_tokens", "perplexity", "error")
    assert result["rows"] == [{field: row[field] for field in fields} for row in read_records(config.output)]
    assert sum("tokens: " in line for line in lines[:12]) == 12

    assert script.main([*arguments, "--set", "protocol=sliding"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "unknown key 'protocol'; did you mean 'protocols'?" in captured.err
