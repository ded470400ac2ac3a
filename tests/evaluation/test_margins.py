"""Margins of a model on a text: bounds that its own scores keep, and a record of what follows from them."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from alibi_gpt_cli.main import main
from modeling_alibi_gpt.alibi import alibi_windows
from modeling_alibi_gpt.cache_alibi_gpt import measured_margins
from modeling_alibi_gpt.evaluation.margins import MarginsConfig, measure_margins
from modeling_alibi_gpt.runtime.records import read_records
from tests.support.exact_cases import make_model


@torch.no_grad()
def test_margins_bound_what_keys_can_win() -> None:
    """In the attention weights themselves: beyond a window there is no more than the tolerance."""
    model = make_model("alibi", "eager", alibi_beta=16.0)
    tokens = torch.randint(61, (2, 300), generator=torch.Generator().manual_seed(1))
    margins = measured_margins(model, tokens)
    assert margins.shape == (2, 6) and (margins > 0).all()
    distance = torch.arange(300)[:, None] - torch.arange(300)
    slopes = model.config.base_alibi_slopes()
    has_far_keys = False
    for tolerance in (1e-1, 1e-3):
        for weights, layer_margins in zip(model(tokens, output_attentions=True).attentions, margins, strict=True):
            for head, window in enumerate(alibi_windows(slopes, layer_margins, tolerance).tolist()):
                left_out = (weights[:, head].double() * (distance >= window)).sum(-1)
                has_far_keys |= window < 300
                assert left_out.max() <= tolerance
    assert has_far_keys


def test_margins_of_shared_keys_are_those_of_their_copies() -> None:
    shared, alone = (make_model("alibi", "eager", alibi_beta=16.0, num_key_value_heads=heads) for heads in (3, 6))
    weights = shared.state_dict()
    for name in weights:
        if "k_proj" in name or "v_proj" in name:
            weights[name] = weights[name].unflatten(0, (3, -1)).repeat_interleave(2, dim=0).flatten(0, 1)
    alone.load_state_dict(weights)
    tokens = torch.randint(61, (2, 300), generator=torch.Generator().manual_seed(1))
    found, expected = (measured_margins(model, tokens) for model in (shared, alone))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_the_record_names_windows_of_every_head(
    make_folder: Callable[[str], str], source: str, tmp_path: Path
) -> None:
    output = tmp_path / "margins.jsonl"
    config = MarginsConfig(model=make_folder("alibi"), source=source, length_tokens=200, output=str(output))
    record = measure_margins(config)
    assert read_records(output) == [record]
    for slopes, margins, windows in zip(
        record["slopes_by_layer"], record["margins_nats_by_layer"], record["windows_tokens_by_layer"], strict=True
    ):
        for slope, margin, window in zip(slopes, margins, windows, strict=True):
            left_out = margin - slope * window - math.log(-math.expm1(-slope))
            assert left_out <= math.log(record["tolerance"]) + 1e-9


@pytest.mark.parametrize("make", [lambda: make_model("rope"), lambda: GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2))])
def test_positions_without_slopes_are_refused(make: Callable[[], PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="^expected ALiBi with one slope per head"):
        measured_margins(make(), torch.zeros(1, 4, dtype=torch.long))


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("mpt", "margins need an AlibiGPT with ALiBi, got a model of type mpt: .*'alibi-gpt convert'"),
        ("rope", "margins need ALiBi with one slope per head, got position_method rope$"),
        ("t5", "margins need ALiBi with one slope per head, got position_method t5$"),
        ("dynamic", "margins need ALiBi with one slope per head, got alibi_scaling {'type': 'dynamic_linear'"),
    ],
)
def test_a_model_without_margins_is_refused_before_anything_is_read(
    make_folder: Callable[[str], str], tmp_path: Path, folder: str, message: str
) -> None:
    path = Path(make_folder("alibi" if folder == "dynamic" else folder))
    if folder == "dynamic":
        path = Path(shutil.copytree(path, tmp_path / "dynamic"))
        fields = json.loads((path / "config.json").read_text(encoding="utf-8"))
        fields["alibi_scaling"] = {"type": "dynamic_linear"}
        (path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        measure_margins(MarginsConfig(model=str(path), source="text:/nowhere/*.txt"))


def test_the_command_reads_settings_as_evaluate_does(
    make_folder: Callable[[str], str], source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "margins.yaml"
    settings.write_text(f"source: {source}\nlength_tokens: 300\n", encoding="utf-8")
    command = ["margins", "--model", make_folder("alibi"), "--config", str(settings), "--length-tokens", "100"]
    assert main([*command, "--set", "dtype=bfloat16", "--set", "attn_implementation=eager", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    record = json.loads(lines[-1])
    assert lines[0].startswith("layer 0: margins of ") and record["length_tokens"] == 100
    origin = record["provenance"]
    assert (origin["source"], origin["dtype"], origin["attn_implementation"]) == (source, "bfloat16", "eager")
    for setting, message in (
        ("max_tokens=50", "error: the text has 51 tokens, .* raise max_tokens or lower the length"),
        ("stride_tokens=4", "error: stride_tokens is not used here: margins read one window"),
        ("batch_tokens=4", "error: batch_tokens is not used here: margins read one window"),
        ("plugins=[no_such_module]", "error: plugins: no module 'no_such_module' is installed"),
        ("stride=4", "error: unknown key 'stride'"),
    ):
        assert main([*command, "--set", setting]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert re.match(message, error)
