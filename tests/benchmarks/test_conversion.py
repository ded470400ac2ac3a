"""The records of what other families' code does to ALiBi."""

from dataclasses import replace

from benchmarks.conversion import COMPARISONS, measure_differences


def test_differences_are_the_originals() -> None:
    comparisons = [replace(comparison, lengths_tokens=(300,)) for comparison in COMPARISONS]
    records = measure_differences(comparisons)
    assert all(0.5 < record["logit_std"] < 2 and record["kl_nats_per_token"] >= 0 for record in records)
    largest = {
        (record["name"], record["model"], record["dtype"], record["reference"]): record["max_logit_difference"]
        for record in records
    }
    assert len(largest) == len(comparisons)
    for (_, model, dtype, _), difference in largest.items():
        # Some 100 roundings of float32; logits are of the order of 1.
        assert difference < 1e-5 or model == "original" or dtype == "bfloat16"
    mpt = ("mpt with alibi_bias_max 16", "original", "float32")
    assert largest[*mpt, "converted"] > 0.1
    # The original adds up to 0.71 * 300 nats of absolute bias to a score, which float32 holds in steps of 1.5e-5.
    assert largest[*mpt, "converted as_transformers"] < 6e-5
    assert largest["falcon", "original", "float32", "converted"] > 0.01
    ours, original = (largest["bloom", model, "bfloat16", "converted"] for model in ("converted", "original"))
    assert ours < original / 2
