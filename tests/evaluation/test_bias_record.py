"""The record behind the picture of the bias."""

import torch

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.alibi import alibi_causal_bias, alibi_slopes
from modeling_alibi_gpt.evaluation.bias_record import DRAWN_LENGTH_TOKENS, bias_matrix_records
from modeling_alibi_gpt.reporting.records import check_record


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
