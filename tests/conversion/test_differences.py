"""The records of what other families' code does to ALiBi."""

from dataclasses import replace

from modeling_alibi_gpt.conversion.differences import COMPARISONS, measure_differences


def test_differences_are_the_originals_and_the_flag_removes_what_it_can() -> None:
    comparisons = [replace(comparison, lengths_tokens=(300,)) for comparison in COMPARISONS]
    records = {(record["name"], record["dtype"]): record for record in measure_differences(comparisons)}
    assert len(records) == len(comparisons)
    largest = {key: record["max_logit_difference"] for key, record in records.items()}
    exact = 1e-5  # some 100 roundings of float32: logits are of the order of 1
    assert all(0.5 < record["logit_std"] < 2 for record in records.values())
    assert largest["bloom, converted", "float32"] < exact
    assert largest["mpt with alibi_bias_max 16, converted as_transformers", "float32"] < exact
    assert largest["mpt with alibi_bias_max 16, converted", "float32"] > 0.1
    rounded, exactly = (largest[f"falcon, converted{flag}", "float32"] for flag in (" as_transformers", ""))
    assert exact < rounded and exact < exactly
    assert largest["bloom, converted", "bfloat16"] < largest["bloom, original", "bfloat16"]
