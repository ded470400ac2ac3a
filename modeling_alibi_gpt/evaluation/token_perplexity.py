"""Perplexity of summed nats as a local ``evaluate.Metric`` that needs no network, for users of that library.

No other file imports this one: ``python scripts/evaluate.py`` puts its own folder first on the search path, so that
script would shadow the library.
"""

from collections.abc import Sequence

import datasets
import evaluate

from modeling_alibi_gpt.evaluation.measurement import perplexity_of_nats


class TokenPerplexity(evaluate.Metric):
    """Perplexity and bits per byte from the totals of each sequence.

    Inputs, one entry per sequence: ``nats`` (negative log-likelihood of its scored tokens), ``num_tokens`` and
    ``num_bytes`` (UTF-8, of the same tokens). Bits per byte are comparable across tokenizers.

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
            inputs_description="nats, num_tokens, num_bytes: one number per sequence.",
            features=datasets.Features(features),
        )

    def _compute(
        self, nats: Sequence[float], num_tokens: Sequence[int], num_bytes: Sequence[int]
    ) -> dict[str, float | int]:
        return perplexity_of_nats(nats, num_tokens, num_bytes)
