"""One checkpoint on one text: the record, the settings that are refused, the script, and two processes."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_alibi_gpt.checkpoints.load import load_causal_lm, load_model_tokenizer
from modeling_alibi_gpt.data.corpora import load_documents
from modeling_alibi_gpt.data.tokenization import token_stream
from modeling_alibi_gpt.evaluation import perplexity
from modeling_alibi_gpt.evaluation.margins import MarginsConfig, measure_margins
from modeling_alibi_gpt.evaluation.perplexity import PerplexityConfig, evaluate_perplexity
from modeling_alibi_gpt.runtime.records import read_records
from tests.support.scoring_reference import reference_nats


ROOT = Path(__file__).resolve().parents[2]
PERPLEXITY_FIELDS = [
    *("kind", "name", "model", "position_method", "protocol", "length_tokens", "stride_tokens"),
    *("nats_per_token", "perplexity", "bits_per_byte", "num_tokens", "num_bytes", "provenance"),
]


@pytest.mark.parametrize("protocol, stride", [("nonoverlapping", None), ("sliding", 4)])
def test_record_holds_the_figures_of_the_whole_text(make_folder, source: str, tmp_path, protocol: str, stride):
    folder, output = make_folder("alibi"), tmp_path / "perplexity.jsonl"
    record = evaluate_perplexity(PerplexityConfig(model=folder, source=source, protocol=protocol, output=str(output)))
    stream = token_stream(load_documents(source, "all"), load_model_tokenizer(folder))
    nats, _ = reference_nats(load_causal_lm(folder), stream.input_ids, 16, stride)

    assert list(record) == PERPLEXITY_FIELDS
    assert [record[key] for key in PERPLEXITY_FIELDS[:7]] == [
        *("perplexity", "alibi", folder, "alibi", protocol, 16, stride),
    ]
    # float32 errors of single losses, at most some 1e-6 each, can only average out.
    assert record["nats_per_token"] == pytest.approx(nats.mean().item(), abs=1e-5)
    assert record["perplexity"] == pytest.approx(math.exp(record["nats_per_token"]), rel=1e-12)
    assert record["num_tokens"] == len(stream.input_ids) - 1
    assert record["num_bytes"] == len(Path(source.removeprefix("text:")).read_bytes())
    bits = record["nats_per_token"] * record["num_tokens"] / math.log(2)
    assert record["bits_per_byte"] == pytest.approx(bits / record["num_bytes"], rel=1e-12)
    assert record["provenance"]["split"] == "all"
    assert read_records(output) == [record]


@pytest.mark.parametrize("name", ["", "words.txt/perplexity.jsonl"])
def test_a_place_for_no_record_is_refused_before_anything_is_measured(
    make_folder, source: str, tmp_path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setattr(perplexity, "score_stream", lambda *args, **settings: pytest.fail("measured in vain"))
    (tmp_path / "words.txt").touch()
    for measure, config_class in ((evaluate_perplexity, PerplexityConfig), (measure_margins, MarginsConfig)):
        with pytest.raises(OSError, match="expected a (file|folder)"):
            measure(config_class(model=make_folder("alibi"), source=source, output=str(tmp_path / name)))
    assert [path.name for path in tmp_path.iterdir()] == ["words.txt"]


def test_a_text_cut_short_counts_the_bytes_of_what_it_scores(make_folder, source: str):
    folder = make_folder("alibi")
    record = evaluate_perplexity(PerplexityConfig(model=folder, source=source, max_tokens=50))
    stream = token_stream(load_documents(source, "all"), load_model_tokenizer(folder))
    assert (record["num_tokens"], record["num_bytes"]) == (50, stream.num_bytes[1:51].sum().item())
    assert stream.num_bytes[50] > 0


def test_bfloat16_is_the_dtype_of_the_weights(make_folder, source: str):
    folder = make_folder("alibi")
    assert load_causal_lm(folder, dtype="bfloat16").dtype == torch.bfloat16
    exact, rounded = (
        evaluate_perplexity(PerplexityConfig(model=folder, source=source, dtype=dtype))["nats_per_token"]
        for dtype in ("float32", "bfloat16")
    )
    # Eight bits of mantissa: losses of this size move, by less than a percent.
    assert 0 < abs(exact - rounded) < 0.01 * exact


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"length_tokens": 0}, "'length_tokens' must be at least 1"),
        ({"length_tokens": 100_000}, "the text has .* a window of 100000 needs 100001"),
        ({"protocol": "sliding", "stride_tokens": 17}, "in 1..16"),
        ({"protocol": "sliding", "stride_tokens": 0, "length_tokens": None}, "'stride_tokens' must be at least 1"),
        ({"stride_tokens": 4}, "needs protocol=sliding"),
        ({"dtype": "float8"}, "'dtype' must be 'float32' or 'bfloat16', got 'float8'"),
        ({"attn_implementation": "flash_attention_2"}, "cannot be loaded"),
        ({"batch_tokens": 0}, "'batch_tokens' must be at least 1"),
        ({"max_tokens": 0}, "'max_tokens' must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(make_folder, source: str, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        evaluate_perplexity(PerplexityConfig(**{"model": make_folder("alibi"), "source": source, **settings}))


def test_script_ends_with_the_record_or_with_one_line(make_folder, source: str, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("evaluate_script", ROOT / "scripts" / "evaluate.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    output = tmp_path / "perplexity.jsonl"
    config = str(ROOT / "configs/evaluation/perplexity.yaml")
    arguments = ["--config", config, "--model", make_folder("alibi"), "--data", source, "--set", f"output={output}"]
    assert script.main([*arguments, "--set", "protocol=sliding", "--json"]) == 0
    assert [json.loads(capsys.readouterr().out.splitlines()[-1])] == read_records(output)

    assert script.main([*arguments, "--set", "lenght_tokens=8"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == "error: unknown key 'lenght_tokens'; did you mean 'length_tokens'?"


@pytest.mark.slow
def test_two_processes_print_the_record_of_one(make_folder, source: str):
    arguments = ["scripts/evaluate.py", "--model", make_folder("alibi"), "--data", source, "--set", "batch_tokens=64"]
    arguments.append("--json")
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    records = []
    for prefix in ([], launch):
        done = subprocess.run(
            [sys.executable, *prefix, *arguments],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        records.append(json.loads(done.stdout.splitlines()[-1]))
        assert done.stdout.count('"kind": "perplexity"') == 1
    alone, together = ({key: value for key, value in record.items() if key != "provenance"} for record in records)
    assert alone == together
