"""The record behind the picture of the bias."""

import pytest
import torch

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.alibi import alibi_causal_bias, alibi_slopes
from modeling_alibi_gpt.evaluation.bias_record import (
    DRAWN_LENGTH_TOKENS,
    bias_by_distance,
    bias_by_distance_records,
    bias_matrix_records,
)
from modeling_alibi_gpt.position_methods import POSITION_METHODS
from modeling_alibi_gpt.runtime.records import check_record


def _model(method: str) -> AlibiGPTForCausalLM:
    return AlibiGPTForCausalLM(
        AlibiGPTConfig(
            vocab_size=61, hidden_size=48, num_hidden_layers=1, num_attention_heads=3, position_method=method
        )
    )


def test_it_holds_the_causal_bias_and_its_slopes() -> None:
    (record,) = bias_matrix_records(_model("alibi"), "tiny")
    check_record(record)
    assert record["slopes"] == alibi_slopes(3).tolist()
    matrix = [[[-1e9 if value is None else value for value in row] for row in head] for head in record["bias"]]
    assert torch.equal(torch.tensor(matrix), alibi_causal_bias(alibi_slopes(3), DRAWN_LENGTH_TOKENS))


def test_a_method_without_slopes_has_none() -> None:
    assert bias_matrix_records(_model("sinusoidal"), "tiny") == []


@pytest.mark.parametrize("method", POSITION_METHODS)
def test_the_bias_of_every_method_can_be_recorded_by_distance(method: str) -> None:
    model = _model(method)
    before = bias_by_distance(model)
    records = bias_by_distance_records(model, "tiny", before)
    assert len(records) == POSITION_METHODS[method].has_bias
    for record in records:
        check_record(record)
        distances = record["distances_tokens"]
        assert distances[0] == 0 and distances[-1] == 4 * model.config.train_context_length
        assert record["bias_before"] == record["bias_after"]
        (curves,) = record["bias_after"]
        assert torch.tensor(curves).shape == (3, len(distances))


def test_by_distance_is_the_bias_of_the_last_query() -> None:
    """FIRE divides by the position of the query, so that an earlier one has another bias at the same distance."""
    model = _model("fire")
    (record,) = bias_by_distance_records(model, "tiny", None)
    last = 4 * model.config.train_context_length
    with torch.no_grad():
        row = model.model.position_method.bias(0, torch.tensor([[last]]), torch.arange(last + 1)[None], torch.float32)
    expected = row[0, :, 0, last - torch.tensor(record["distances_tokens"])]
    torch.testing.assert_close(torch.tensor(record["bias_after"][0]), expected, rtol=1e-6, atol=1e-6)
