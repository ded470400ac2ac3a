"""Perplexity is token-exact: every token once, in the context its protocol promises, whatever the batches and processes."""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
)

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.evaluation import scoring
from modeling_alibi_gpt.evaluation.checkpoints import load_causal_lm, load_model_tokenizer
from modeling_alibi_gpt.evaluation.perplexity import PerplexityConfig, evaluate_perplexity
from modeling_alibi_gpt.evaluation.scoring import MAX_TENSOR_BYTES, plan_calls, score_stream
from modeling_alibi_gpt.evaluation.token_perplexity import TokenPerplexity
from modeling_alibi_gpt.evaluation.windows import plan_windows
from modeling_alibi_gpt.reporting.records import read_records
from modeling_alibi_gpt.training.corpora import load_documents
from modeling_alibi_gpt.training.tokenization import token_stream


ROOT = Path(__file__).resolve().parents[2]
VOCAB_SIZE = 61
PERPLEXITY_FIELDS = [
    *("kind", "name", "model", "position_method", "protocol", "length_tokens", "stride_tokens"),
    *("nats_per_token", "perplexity", "bits_per_byte", "num_tokens", "num_bytes", "provenance"),
]


def context_start(prediction: int, num_predictions: int, length: int, stride: int | None) -> int:
    """Where the context of a prediction begins, by the definition of its protocol."""
    if stride is None:
        return prediction // length * length
    stop = min(length, num_predictions)
    while stop <= prediction:
        stop = min(stop + stride, num_predictions)
    return max(0, stop - length)


@pytest.mark.parametrize("length, stride", [(1, None), (4, None), (7, None), (1, 1), (4, 1), (7, 3), (8, 8), (50, 9)])
def test_windows_score_every_token_once_in_its_context(length: int, stride: int | None):
    protocol = "nonoverlapping" if stride is None else "sliding"
    for num_tokens in range(2, 40):
        windows = plan_windows(num_tokens, length_tokens=length, protocol=protocol, stride_tokens=stride)
        scored = [(i, window.start) for window in windows for i in range(num_tokens)[window.scored]]
        assert scored == [(i, context_start(i, num_tokens - 1, length, stride)) for i in range(num_tokens - 1)]
        assert all(0 <= window.start < window.stop <= num_tokens - 1 for window in windows)
        assert all(window.num_inputs <= length for window in windows)


@pytest.mark.parametrize(
    "num_tokens, length, protocol, stride, message",
    [
        (1, 4, "nonoverlapping", None, "at least 2 tokens, got 1"),
        (9, 0, "nonoverlapping", None, "length_tokens must be at least 1, got 0"),
        (9, 4, "nonoverlapping", 2, "needs protocol=sliding"),
        (9, 4, "sliding", 5, "in 1..4"),
        (9, 4, "sliding", 0, "in 1..4"),
        (9, 4, "strided", None, "nonoverlapping, sliding, got 'strided'"),
    ],
)
def test_impossible_windows_are_refused(num_tokens: int, length: int, protocol: str, stride: int | None, message: str):
    with pytest.raises(ValueError, match=message):
        plan_windows(num_tokens, length_tokens=length, protocol=protocol, stride_tokens=stride)


def alibi_gpt(**fields) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return AlibiGPTForCausalLM(AlibiGPTConfig(**sizes, initializer_range=0.2, train_context_length=32, **fields))


def llama(**fields) -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCAB_SIZE, **sizes, max_position_embeddings=8, initializer_range=0.2, **fields)
    )


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "alibi": alibi_gpt,
    "alibi_eager": lambda: alibi_gpt(attn_implementation="eager"),
    "alibi_dynamic": lambda: alibi_gpt(alibi_scaling={"type": "dynamic_ntk"}),
    "alibi_slopes": lambda: alibi_gpt(alibi_trainable="slopes", num_key_value_heads=2),
    "learned": lambda: alibi_gpt(position_method="learned"),
    "rope": lambda: alibi_gpt(position_method="rope"),
    "sinusoidal": lambda: alibi_gpt(position_method="sinusoidal"),
    "none": lambda: alibi_gpt(position_method="none"),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=32, initializer_range=0.2)
    ),
    "llama": llama,
    "llama_dynamic": lambda: llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    ),
    "mpt": lambda: MptForCausalLM(MptConfig(vocab_size=VOCAB_SIZE, d_model=32, n_layers=2, n_heads=4, max_seq_len=32)),
    "falcon": lambda: FalconForCausalLM(
        FalconConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True)
    ),
}


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(VOCAB_SIZE, (75,), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def reference_nats(model: PreTrainedModel, ids: Tensor, length: int, stride: int | None) -> tuple[Tensor, float]:
    """The loss of every prediction from one plain call for each window, in float64, and the largest logit."""
    num_predictions = len(ids) - 1
    nats, largest = torch.zeros(num_predictions, dtype=torch.float64), 0.0
    stops = {}
    for i in range(num_predictions):
        stops[context_start(i, num_predictions, length, stride)] = i + 1
    done = 0
    for start, stop in stops.items():
        logits = model(ids[None, start:stop], use_cache=False).logits[0]
        losses = nn.functional.cross_entropy(logits, ids[start + 1 : stop + 1], reduction="none")
        nats[done:stop] = losses[done - start :]
        largest = max(largest, logits.abs().max().item())
        done = stop
    return nats, largest


@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize("name", MODELS)
def test_chunks_and_batches_give_the_loss_of_plain_calls(name: str, stride: int | None, ids: Tensor):
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    expected, largest_logit = reference_nats(model, ids, 16, stride)
    # The model computes in float64, so all that differs is the cast of the logits to float32: half an ulp each for
    # the target's logit and those under the logarithm, and as much again for the sum, the difference and the result.
    tolerance = 4 * torch.finfo(torch.float32).eps * max(1.0, largest_logit)
    for batch_tokens in (4096, 40, 16, 5, 1):
        scores = score_stream(
            model,
            ids,
            length_tokens=16,
            protocol="nonoverlapping" if stride is None else "sliding",
            stride_tokens=stride,
            batch_tokens=batch_tokens,
        )
        np.testing.assert_allclose(scores.token_nats, expected.numpy(), rtol=0, atol=tolerance)


def test_scores_sum_by_window_and_by_position(ids: Tensor):
    scores = score_stream(alibi_gpt(), ids, length_tokens=16, protocol="sliding", stride_tokens=5)
    nats, counts = np.zeros(16), np.zeros(16, dtype=int)
    for i, loss in enumerate(scores.token_nats):
        position = i - context_start(i, len(ids) - 1, 16, 5)
        nats[position] += loss
        counts[position] += 1
    np.testing.assert_allclose(scores.position_nats, nats, rtol=1e-14)
    np.testing.assert_array_equal(scores.position_num_tokens, counts)
    assert scores.window_num_tokens.tolist() == [16, *[5] * 11, 3]
    np.testing.assert_allclose(scores.window_nats.sum(), scores.token_nats.sum(), rtol=1e-14)


def test_scoring_leaves_the_model_as_it_was(ids: Tensor):
    model = alibi_gpt(resid_pdrop=0.5).train()
    first, second = (score_stream(model, ids, length_tokens=16, protocol="nonoverlapping") for _ in range(2))
    np.testing.assert_array_equal(first.token_nats, second.token_nats)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("num_processes", [2, 3, 40])
def test_processes_share_the_batches_and_sum_to_the_same(num_processes: int, ids: Tensor, monkeypatch):
    torch.manual_seed(0)
    model = alibi_gpt()
    settings = {"length_tokens": 8, "protocol": "sliding", "stride_tokens": 4, "batch_tokens": 16}
    alone = score_stream(model, ids, **settings)
    total = np.zeros_like(alone.token_nats)
    monkeypatch.setattr(scoring, "reduce", lambda tensor, reduction: tensor)
    for index in range(num_processes):
        state = SimpleNamespace(
            process_index=index, num_processes=num_processes, device=torch.device("cpu"), is_main_process=index == 0
        )
        monkeypatch.setattr(scoring, "PartialState", lambda state=state: state)
        total += score_stream(model, ids, **settings).token_nats
    np.testing.assert_array_equal(total, alone.token_nats)


@pytest.mark.parametrize("num_heads", [1, 12, 32])
@pytest.mark.parametrize("vocab_size", [256, 50257])
def test_logits_and_attention_stay_within_the_budget(num_heads: int, vocab_size: int):
    config = AlibiGPTConfig(vocab_size=vocab_size, num_attention_heads=num_heads, hidden_size=64 * num_heads)
    for length in (1, 100, 1024, 16384, 131072):
        for batch_tokens in (1, 1000, 16384, 10**6):
            batch_size, chunk = plan_calls(config, length, batch_tokens)
            assert 1 <= chunk <= length
            assert batch_size == 1 or chunk == length
            assert batch_size * chunk <= max(1, batch_tokens)
            assert 4 * batch_size * chunk * max(vocab_size, num_heads * length) <= MAX_TENSOR_BYTES


def test_a_table_that_ends_is_named(ids: Tensor):
    with pytest.raises(ValueError, match="learned positions end at train_context_length = 32"):
        score_stream(MODELS["learned"](), ids, length_tokens=33, protocol="nonoverlapping")
    with pytest.raises(ValueError, match="index 32 is beyond the model's table of 32 rows"):
        score_stream(MODELS["gpt2"](), ids, length_tokens=33, protocol="nonoverlapping")


def test_metric_keeps_float64_and_counts_bytes():
    figures = TokenPerplexity(keep_in_memory=True).compute(
        nats=[6.0, 2.0 + 2**-40], num_tokens=[3, 1], num_bytes=[9, 1]
    )
    nats = 8.0 + 2**-40
    assert figures == {
        "nats_per_token": nats / 4,
        "perplexity": math.exp(nats / 4),
        "bits_per_byte": nats / math.log(2) / 10,
        "num_tokens": 4,
        "num_bytes": 10,
    }


@pytest.mark.parametrize(
    "nats, num_tokens, num_bytes, message",
    [
        ([], [], [], "0 tokens"),
        ([0.0], [0], [4], "0 tokens"),
        ([1.0], [1], [0], "0 bytes"),
        ([1.0, math.nan], [1, 1], [1, 1], "nan nats per token"),
        ([math.inf], [1], [1], "inf nats per token"),
        ([710.0], [1], [1], "710.0 nats per token"),
    ],
)
def test_metric_refuses_what_is_no_number(nats: list, num_tokens: list, num_bytes: list, message: str):
    with pytest.raises(ValueError, match=message):
        TokenPerplexity(keep_in_memory=True).compute(nats=nats, num_tokens=num_tokens, num_bytes=num_bytes)


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


def test_bfloat16_is_the_dtype_of_the_weights(make_folder, source: str):
    folder = make_folder("alibi")
    assert load_causal_lm(folder, dtype="bfloat16").dtype == torch.bfloat16
    exact, rounded = (
        evaluate_perplexity(PerplexityConfig(model=folder, source=source, dtype=dtype))["nats_per_token"]
        for dtype in ("float32", "bfloat16")
    )
    # Eight bits of mantissa: losses of this size move, by less than a percent.
    assert 0 < abs(exact - rounded) < 0.01 * exact


def edit_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def rewrite_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(folder: Path, num_bytes: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:num_bytes])


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        (shutil.rmtree, "no model here"),
        (lambda folder: truncate(folder, 0), "truncated or damaged"),
        (lambda folder: truncate(folder, -1), "truncated or damaged"),
        (pickle_weights, "no file named model.safetensors"),
        (lambda folder: rewrite_weights(folder, lambda weights: weights.popitem()), "1 weights .* are missing"),
        (lambda folder: edit_config(folder, num_hidden_layers=1), "weights are not of the model"),
        (lambda folder: edit_config(folder, hidden_size=32), "asks for .*, the weights hold"),
        (lambda folder: edit_config(folder, alibi_beta=-1), "beta must be a finite number above 0"),
        (lambda folder: edit_config(folder, vocab_size=100), r"the tokenizer has \d+ tokens but the model only 100"),
        (lambda folder: (folder / "config.json").write_text("{", encoding="utf-8"), "config.json cannot be used"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: rewrite_weights(folder, lambda w: w["model.norm.weight"].fill_(math.nan)), "nan nats"),
    ],
)
def test_damaged_checkpoints_are_refused(make_folder, source: str, tmp_path, damage: Callable, message: str):
    folder = tmp_path / "checkpoint"
    shutil.copytree(make_folder("alibi"), folder)
    damage(folder)
    output = tmp_path / "perplexity.jsonl"
    with pytest.raises(ValueError, match=message):
        evaluate_perplexity(PerplexityConfig(model=str(folder), source=source, output=str(output)))
    assert not output.exists()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"length_tokens": 0}, "length_tokens must be at least 1"),
        ({"length_tokens": 100_000}, "the text has .* a window of 100000 needs 100001"),
        ({"protocol": "sliding", "stride_tokens": 17}, "in 1..16"),
        ({"stride_tokens": 4}, "needs protocol=sliding"),
        ({"dtype": "float8"}, "float32, bfloat16, got 'float8'"),
        ({"attn_implementation": "flash_attention_2"}, "cannot be loaded"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
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
    assert script.main([*arguments, "--set", "protocol=sliding"]) == 0
    assert [json.loads(capsys.readouterr().out.splitlines()[-1])] == read_records(output)

    assert script.main([*arguments, "--set", "lenght_tokens=8"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == "error: unknown key 'lenght_tokens'; did you mean 'length_tokens'?"


@pytest.mark.slow
def test_two_processes_print_the_record_of_one(make_folder, source: str):
    arguments = ["scripts/evaluate.py", "--model", make_folder("alibi"), "--data", source, "--set", "batch_tokens=64"]
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
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


ONE_PROCESS_FAILS = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from modeling_alibi_gpt.evaluation.scoring import score_stream

model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1, n_positions=8))
ids = torch.tensor([1] * 17 + [8])  # only the last batch, which one process has, holds the token that does not exist
try:
    score_stream(model, ids, length_tokens=4, protocol="nonoverlapping", batch_tokens=4)
except ValueError as error:
    print(f"refused: {error}", flush=True)
"""


@pytest.mark.slow
def test_a_failure_in_one_process_ends_all(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(ONE_PROCESS_FAILS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", str(program)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert done.stdout.count("refused: ") == 2


LONG_WINDOW = """
import resource
import torch
from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.evaluation.scoring import score_stream

torch.manual_seed(0)
model = AlibiGPTForCausalLM(AlibiGPTConfig(num_hidden_layers=2))
ids = torch.randint(model.config.vocab_size, (16385,))
scores = score_stream(model, ids, length_tokens=16384, protocol="nonoverlapping")
assert len(scores.token_nats) == 16384
print(scores.token_nats.mean(), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_16k_window_with_a_50k_vocabulary_stays_below_4_gb():
    done = subprocess.run(
        [sys.executable, "-c", LONG_WINDOW], cwd=ROOT, capture_output=True, text=True, check=True, timeout=900
    )
    nats_per_token, peak_bytes = map(float, done.stdout.split())
    # A model that knows nothing pays log(V) and the half variance of its logits, 0.02 ** 2 * 768 at the start.
    assert nats_per_token == pytest.approx(math.log(50257) + 0.5 * 0.02**2 * 768, abs=0.05)
    assert peak_bytes < 4e9
