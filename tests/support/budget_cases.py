"""Synthetic records of a comparison of betas at several training budgets, whose losses follow a formula."""

from typing import Any

import numpy as np

from modeling_alibi_gpt.experiments.paired import comparison_records
from tests.support.example_records import PROVENANCE, extrapolation_record, training_record


BETAS = 2.0 ** np.arange(-1, 7)
# The best beta falls by the root of the tokens, its worth by their logarithm squared.
TOKENS = [2**19, 2**20, 2**21, 2**22, 2**23]


def nats(tokens: int) -> np.ndarray:
    """By beta: 0.05 nats for the first factor of two from the best, which is 16 at the smallest budget."""
    best = 4 - 0.5 * np.log2(tokens / TOKENS[0])
    return 4 + 0.05 * (np.log2(BETAS) - best) ** 2


def budget_records(num_budgets: int) -> list[dict[str, Any]]:
    """What a comparison with these budgets writes, but for predictions."""
    written = []
    for tokens in TOKENS[:num_budgets]:
        name = f"betas, {tokens:,} tokens"
        labels = {"comparison": name, "series": "betas", "budget_tokens": tokens}
        of_budget = []
        for beta, loss in zip(BETAS, nats(tokens), strict=True):
            fields = {} if beta == 1 else {"alibi_beta": float(beta)}
            for seed in (0, 1):
                place = {**labels, "variant": f"beta {beta:g}", "fields": fields, "seed": seed}
                row = extrapolation_record("alibi", "sliding", 128)
                of_budget.append(
                    {
                        **row,
                        **place,
                        "name": f"beta {beta:g}",
                        "reading": "as trained",
                        "nats_per_token": loss + 0.01 * seed,
                        "overrides": {},
                    }
                )
                trained = training_record("alibi", seed)
                of_budget.append({**trained, **place, "num_train_tokens": tokens})
        corpus = {"kind": "corpus", "comparison": name, "source": "text:x", "num_documents": 1, "num_bytes": 10}
        corpus |= {"fingerprint": "0", "documents": ["a.txt"], "provenance": PROVENANCE}
        cells = [cell | labels for cell in comparison_records(of_budget, reference="beta 1", corpus="novels")]
        written += [corpus, *of_budget, *[cell | {"series": "betas", "budget_tokens": tokens} for cell in cells]]
    return written
