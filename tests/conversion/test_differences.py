"""The records of what other families' code does to ALiBi."""

from dataclasses import replace

from modeling_alibi_gpt.conversion.differences import COMPARISONS, measure_differences


def test_differences_are_the_originals_and_the_flag_removes_that_of_mpt() -> None:
    comparisons = [replace(comparison, lengths_tokens=(300,)) for comparison in COMPARISONS]
    records = {(record["name"], record["dtype"]): record for record in measure_differences(comparisons)}
    assert len(records) == len(comparisons)
    largest = {key: record["max_logit_difference"] for key, record in records.items()}
    # Originals add up to 0.71 * 300 nats of absolute bias to a score, which float32 rounds to steps of 1.5e-5.
    exact = 6e-5
    assert all(0.5 < record["logit_std"] < 2 for record in records.values())
    assert all(record["kl_nats_per_token"] >= 0 for record in records.values())
    assert largest["bloom, converted", "float32"] < exact
    assert largest["mpt with alibi_bias_max 16, converted as_transformers", "float32"] < exact
    assert largest["mpt with alibi_bias_max 16, converted", "float32"] > 0.1
    assert largest["falcon, converted", "float32"] > 0.01
    assert largest["bloom, converted", "bfloat16"] < largest["bloom, original", "bfloat16"] / 2
