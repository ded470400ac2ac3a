"""The record in results/ says what the benchmark of serving measures, and what choosing the cache's size is worth."""

from pathlib import Path

import pytest
from transformers.utils.import_utils import is_serve_available

from benchmarks import serving
from modeling_alibi_gpt.runtime.records import check_record, read_records


ROOT = Path(__file__).parents[2]


@pytest.mark.integrations
@pytest.mark.skipif(not is_serve_available(), reason="transformers[serving] is not installed")
def test_each_server_has_its_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("--cb-num-blocks", "4", "--cb-max-batch-tokens", "32")
    monkeypatch.setattr(serving, "CONTESTANTS", {"small": small, "chosen": ()})
    records = list(serving.measure_serving(str(ROOT / "configs" / "model" / "tiny.json"), num_rounds=1))
    for record in records:
        check_record(record)
        assert record["first_answer_seconds"][0] > 0
    # A mask of (32, 1,024 + 32) numbers beside one of (512, 32,768 + 512).
    mask_bytes = 4 * (512 * (32_768 + 512) - 32 * (1024 + 32))
    [small_bytes], [chosen_bytes] = (record["peak_memory_bytes"] for record in records)
    assert chosen_bytes - small_bytes > mask_bytes / 2


def test_the_chosen_cache_answers_within_seconds_and_a_gigabyte() -> None:
    [path] = (ROOT / "results").glob("serving_*.jsonl")
    before, after = read_records(path)
    assert (before["contestant"], after["contestant"]) == tuple(serving.CONTESTANTS)
    assert max(after["first_answer_seconds"]) < min(before["first_answer_seconds"]) / 5
    assert max(after["peak_memory_bytes"]) < 2**30 < min(before["peak_memory_bytes"]) / 5
