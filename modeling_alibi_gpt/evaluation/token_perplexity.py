"""Perplexity as a local ``evaluate.Metric`` over summed nats, so that it needs no network and no logits."""

import math
import sys
from collections.abc import Sequence

import datasets
import evaluate


class TokenPerplexity(evaluate.Metric):
    """Perplexity and bits per byte of sequences whose nats, tokens and bytes are already summed.

    Inputs, one entry a sequence: ``nats`` (negative log likelihood of its scored tokens), ``num_tokens`` and
    ``num_bytes`` (UTF-8, of the same tokens). Bits per byte compare models that have different tokenizers.

    Example:

    ```python
    >>> TokenPerplexity(keep_in_memory=True).compute(nats=[6.0, 2.0], num_tokens=[3, 1], num_bytes=[9, 1])
    ```
    """

    def _info(self) -> evaluate.EvaluationModuleInfo:
        features = {
            "nats": datasets.Value("float64"),
            "num_tokens": datasets.Value("int64"),
            "num_bytes": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description="Token-exact perplexity and bits per byte from summed nats.",
            citation="",
            inputs_description="nats, num_tokens, num_bytes: one number a sequence.",
            features=datasets.Features(features),
        )

    def _compute(
        self, nats: Sequence[float], num_tokens: Sequence[int], num_bytes: Sequence[int]
    ) -> dict[str, float | int]:
        total_nats, total_tokens, total_bytes = math.fsum(nats), sum(num_tokens), sum(num_bytes)
        if total_tokens < 1 or total_bytes < 1:
            raise ValueError(
                f"perplexity needs scored text, got {total_tokens} tokens that stand for {total_bytes} bytes"
            )
        nats_per_token = total_nats / total_tokens
        if not nats_per_token < math.log(sys.float_info.max):
            raise ValueError(f"the loss is {nats_per_token} nats per token, from which no perplexity follows")
        return {
            "nats_per_token": nats_per_token,
            "perplexity": math.exp(nats_per_token),
            "bits_per_byte": total_nats / math.log(2) / total_bytes,
            "num_tokens": total_tokens,
            "num_bytes": total_bytes,
        }
