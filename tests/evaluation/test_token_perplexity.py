"""The metric computes in float64 and refuses what is no number."""

import math

import pytest

from modeling_alibi_gpt.evaluation.token_perplexity import TokenPerplexity


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
