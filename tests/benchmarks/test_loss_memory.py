"""The record in results/ says what the benchmark measures, here on fewer tokens."""

from pathlib import Path

import pytest
import torch

from benchmarks.loss_memory import measure_loss_memory
from modeling_alibi_gpt.runtime.records import check_record, read_records


def test_both_ways_have_one_loss_and_chunks_take_less_memory() -> None:
    whole, chunked = measure_loss_memory(num_tokens=4096, vocab_size=12_000)
    for record in (whole, chunked):
        check_record(record)
    # Terms of one sign, summed in another order; the norm sums squares.
    tolerance = 2 * 4096 * torch.finfo(torch.float32).eps
    assert chunked["nats_per_token"] == pytest.approx(whole["nats_per_token"], rel=tolerance)
    assert chunked["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=tolerance)
    assert whole["extra_bytes"] > 2 * whole["logits_bytes"] > whole["logits_bytes"] > 0
    assert chunked["extra_bytes"] < whole["extra_bytes"] - whole["logits_bytes"]


def test_no_logits_of_8192_tokens_by_50k_words_exist_in_chunks() -> None:
    [path] = (Path(__file__).parents[2] / "results").glob("loss_memory_*.jsonl")
    whole, chunked = read_records(path)
    assert (whole["num_tokens"], whole["vocab_size"], whole["chunk_tokens"]) == (8192, 50257, None)
    assert whole["extra_bytes"] > whole["logits_bytes"] > chunked["extra_bytes"]
