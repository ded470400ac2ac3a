"""Measures where the code of other model families deviates from ALiBi, on random models, against float64."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.models import Shape, make_model
from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert
from modeling_alibi_gpt.runtime.records import Record, check_record, provenance


VOCAB_SIZE, HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS = 512, 512, 2, 16


@dataclass(frozen=True)
class ModelVariant:
    """One model of a comparison: the original or its conversion, in some dtype.

    Attributes:
        dtype: Torch dtype name of weights and arithmetic.
        options: Fields of ``ConvertConfig``; None means the original.
    """

    dtype: str = "float32"
    options: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        if self.options is None:
            return "original"
        return " ".join(["converted", *self.options])


@dataclass(frozen=True)
class Comparison:
    """A variant of an original model and the variant to compare it with.

    Attributes:
        name: Name of the original.
        make: Builds the original for texts of a given length in tokens.
        measured: The variant under test.
        reference: The variant to compare with.
        lengths_tokens: Lengths of the texts.
    """

    name: str
    make: Callable[[int], PreTrainedModel]
    measured: ModelVariant
    reference: ModelVariant
    lengths_tokens: Sequence[int] = field(default=(512, 2048))


SHAPE = Shape(num_layers=NUM_LAYERS, hidden_size=HIDDEN_SIZE, num_heads=NUM_HEADS, vocab_size=VOCAB_SIZE)
# Untied; a random tied model would mostly predict its input.
_falcon = partial(make_model, "falcon", SHAPE, tie_word_embeddings=False)
_mpt = partial(make_model, "mpt", SHAPE, tie_word_embeddings=False, attn_config={"alibi_bias_max": 16})
_bloom = partial(make_model, "bloom", SHAPE, tie_word_embeddings=False)
ALIBI = ModelVariant("float64", {})
MPT_IN_TRANSFORMERS = {"as_transformers": True}
COMPARISONS = (
    Comparison("falcon", _falcon, ModelVariant(), ALIBI),
    Comparison("falcon", _falcon, ModelVariant(options={}), ALIBI),
    Comparison("mpt with alibi_bias_max 16", _mpt, ModelVariant(), ALIBI),
    Comparison("mpt with alibi_bias_max 16", _mpt, ModelVariant(options={}), ALIBI),
    Comparison("mpt with alibi_bias_max 16", _mpt, ModelVariant(), ModelVariant("float64", MPT_IN_TRANSFORMERS)),
    Comparison("bloom", _bloom, ModelVariant(), ALIBI),
    Comparison("bloom", _bloom, ModelVariant(options={}), ALIBI),
    Comparison("bloom", _bloom, ModelVariant("bfloat16"), ALIBI),
    Comparison("bloom", _bloom, ModelVariant("bfloat16", {}), ALIBI),
)


def measure_differences(comparisons: Sequence[Comparison] = COMPARISONS, seed: int = 0) -> list[Record]:
    """Return one ``conversion_difference`` record for each comparison and length.

    Weights are random, so scores before the bias are standard normal and logits are of order 1. The differences
    compare implementations and do not describe a trained model.

    Args:
        comparisons: The pairs of variants to compare.
        seed: Seed of weights and tokens.
    """
    return [_measure(comparison, length, seed) for comparison in comparisons for length in comparison.lengths_tokens]


def _measure(comparison: Comparison, length_tokens: int, seed: int) -> Record:
    generator = torch.Generator().manual_seed(seed)
    original = comparison.make(length_tokens)
    _fill(original, generator)
    input_ids = torch.randint(VOCAB_SIZE, (1, length_tokens), generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        original.save_pretrained(folder)
        logits = _logits(Path(folder), comparison.measured, input_ids)
        expected = _logits(Path(folder), comparison.reference, input_ids)
    log_probabilities, log_expected = logits.log_softmax(-1), expected.log_softmax(-1)
    record = {
        "kind": "conversion_difference",
        "name": comparison.name,
        "model": comparison.measured.name,
        "dtype": comparison.measured.dtype,
        "reference": comparison.reference.name,
        "reference_dtype": comparison.reference.dtype,
        "length_tokens": length_tokens,
        "num_heads": NUM_HEADS,
        "num_layers": NUM_LAYERS,
        "hidden_size": HIDDEN_SIZE,
        "max_logit_difference": (logits - expected).abs().max().item(),
        "logit_std": expected.std().item(),
        "kl_nats_per_token": (log_expected.exp() * (log_expected - log_probabilities)).sum(-1).mean().item(),
        "provenance": provenance(seed=seed),
    }
    check_record(record)
    return record


@torch.no_grad()
def _fill(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Fill matrices with random values that preserve the variance of their input; keep norms and biases."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5)


@torch.no_grad()
def _logits(folder: Path, variant: ModelVariant, input_ids: Tensor) -> Tensor:
    """Logits ``(1, Q, V)`` in float64."""
    with tempfile.TemporaryDirectory() as beside:
        source = folder
        if variant.options is not None:
            source = Path(beside, "converted")
            convert(ConvertConfig(model=str(folder), output_dir=str(source), **variant.options))
        model = AutoModelForCausalLM.from_pretrained(source, dtype=variant.dtype, trust_remote_code=False)
    return model.eval()(input_ids).logits.double()
