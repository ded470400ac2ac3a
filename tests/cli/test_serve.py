"""``alibi-gpt serve``: transformers' command, told how large a cache a CPU has room for."""

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoConfig, ContinuousBatchingConfig, GenerationConfig

from alibi_gpt_cli.main import main
from alibi_gpt_cli.serve import BATCH_TOKENS, NUM_REQUESTS, REQUEST_TOKENS, bytes_per_token, choose_num_blocks
from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM


app = pytest.importorskip("transformers.cli.transformers").app
ON_CPU = ["--continuous-batching", "--device", "cpu"]
FIELDS: dict[str, Any] = {"vocab_size": 64, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    AlibiGPTConfig(**FIELDS, num_key_value_heads=2, train_context_length=32).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The options that transformers' command would start with."""
    options: dict[str, Any] = {}
    monkeypatch.setattr(app.commands["serve"], "callback", lambda **given: options.update(given))
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: True)
    return options


def serve(*words: str) -> int | None:
    """Exit code of the command; transformers' command line ends with SystemExit."""
    with pytest.raises(SystemExit) as end:
        raise SystemExit(main(["serve", *words]))
    return end.value.code or 0


def test_a_cpu_gets_a_cache_for_long_requests_and_says_so(
    handed: dict[str, Any], folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(folder, *ON_CPU, "--port", "8001") == 0
    page_tokens = ContinuousBatchingConfig().page_size
    assert handed["port"] == 8001 and handed["force_model"] == folder
    assert handed["cb_num_blocks"] * page_tokens == NUM_REQUESTS * REQUEST_TOKENS
    assert handed["cb_max_batch_tokens"] == BATCH_TOKENS
    [line, _] = capsys.readouterr().err.splitlines()
    assert f"--cb-num-blocks {handed['cb_num_blocks']} (of {page_tokens} tokens)" in line


@pytest.mark.parametrize(
    "words",
    [
        ["--device", "cpu"],
        ["--continuous-batching", "--device", "cuda"],
        [*ON_CPU, "--cb-num-blocks", "5"],
        [*ON_CPU, "--cb-max-memory-percent", "0.1"],
    ],
    ids=" ".join,
)
def test_nothing_is_chosen_elsewhere(
    handed: dict[str, Any], folder: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(folder, *words) == 0
    given = {name: value for name, value in handed.items() if name in ("cb_num_blocks", "cb_max_batch_tokens")}
    assert given == {"cb_num_blocks": 5 if "5" in words else None, "cb_max_batch_tokens": None}
    assert "--cb-num-blocks" not in capsys.readouterr().err


def test_without_a_model_or_a_size_it_refuses(handed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(*ON_CPU) == 2
    assert "--cb-num-blocks N" in capsys.readouterr().err
    assert serve(*ON_CPU, "--cb-num-blocks", "5") == 0
    assert handed["cb_num_blocks"] == 5


def test_a_folder_may_have_an_at_sign_in_its_name(handed: dict[str, Any], folder: str) -> None:
    folder = str(Path(folder).rename(f"{folder}@100"))
    assert serve(folder, *ON_CPU) == 0
    assert handed["force_model"] == folder and handed["cb_num_blocks"]


def test_the_users_block_and_batch_are_kept_and_counted(handed: dict[str, Any], folder: str) -> None:
    assert serve(folder, *ON_CPU, "--cb-block-size", "32", "--cb-max-batch-tokens", "64") == 0
    assert handed["cb_num_blocks"] * 32 == NUM_REQUESTS * REQUEST_TOKENS
    assert (handed["cb_block_size"], handed["cb_max_batch_tokens"]) == (32, 64)


def test_little_memory_gives_a_small_cache(
    handed: dict[str, Any], folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block_bytes = 256 * bytes_per_token(AutoConfig.from_pretrained(folder), 4, BATCH_TOKENS)
    memory = psutil.virtual_memory()
    for free_bytes, expected in ((10 * block_bytes, 5), (2 * block_bytes - 1, None)):
        scarce = memory._replace(available=free_bytes)
        monkeypatch.setattr(psutil, "virtual_memory", lambda scarce=scarce: scarce)
        handed.clear()
        assert serve(folder, *ON_CPU) == (0 if expected else 2)
        assert handed.get("cb_num_blocks") == expected
    assert "error: got" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("file", "content", "is_announced"),
    [
        ("tokenizer_config.json", "{}", True),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', False),
        ("chat_template.jinja", "{{ messages }}", False),
    ],
)
def test_a_model_without_a_chat_template_is_announced(
    handed: dict[str, Any],
    folder: str,
    capsys: pytest.CaptureFixture[str],
    file: str,
    content: str,
    is_announced: bool,
) -> None:
    (Path(folder) / file).write_text(content)
    assert serve(folder, "--device", "cpu") == 0 and handed["force_model"] == folder
    assert ("no chat template" in capsys.readouterr().err) == is_announced


def test_a_damaged_tokenizer_config_is_named(
    handed: dict[str, Any], folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(folder) / "tokenizer_config.json").write_text("{")
    assert serve(folder, "--device", "cpu") == 2 and not handed
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "tokenizer_config.json" in line


def test_a_longer_training_length_gets_a_longer_cache() -> None:
    config = AlibiGPTConfig(**FIELDS, train_context_length=3000)
    assert choose_num_blocks(config, 256, 1, 2**40) == NUM_REQUESTS * 24  # 6,000 tokens are 24 blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_are_those_that_transformers_allocates(folder: str, dtype: torch.dtype) -> None:
    """Cache and mask as they are; the copy of one layer's keys and values exists only within a forward pass."""
    config = AutoConfig.from_pretrained(folder)
    model = AlibiGPTForCausalLM(config).to(dtype).eval()
    num_blocks, page_tokens = 4, 256
    sizes = ContinuousBatchingConfig(num_blocks=num_blocks, max_batch_tokens=BATCH_TOKENS)
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(max_new_tokens=1, do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=sizes,
    )
    manager.start()
    try:
        manager.add_request([1, 2, 3], max_new_tokens=1)
        assert manager.get_result(timeout=60) is not None
        processor = manager.batch_processor
        cache = processor.cache
        mask = processor.inputs_and_outputs.attention_mask["full_attention"]
        num_tokens = num_blocks * page_tokens
        cached = cache.cache_tensor.nbytes - 2 * cache.bytes_per_sector  # two sectors are never used
        column = mask.nbytes - BATCH_TOKENS * BATCH_TOKENS * dtype.itemsize  # without the batch's own tokens
        copied = (2 * 6 + 2) * 8 * dtype.itemsize
        assert cached + column == num_tokens * (bytes_per_token(config, dtype.itemsize, BATCH_TOKENS) - copied)
    finally:
        manager.stop(block=True)
