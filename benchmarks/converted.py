"""Times a model of another family against the AlibiGPT that it converts to: same weights and logits, other code."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.models import MODELS, Shape, describe_shape
from benchmarks.timing import extra_bytes, summarize, time_interleaved
from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert
from modeling_alibi_gpt.checkpoints.load import load_causal_lm
from modeling_alibi_gpt.runtime.config import Count, config_dataclass
from modeling_alibi_gpt.runtime.records import Record


FAMILIES = ("bloom", "mpt", "falcon")
MODES = ("forward", "generate")
# Float32 rounding error of logits of order 1, as in the conversion tests.
ROUNDING = 1e-5


@config_dataclass
class ConvertedCase(Shape):
    """An original model to time against its conversion on each of its back ends."""

    family: Literal[*FAMILIES]
    """Family of the original: ``bloom``, ``mpt`` or ``falcon``."""
    length_tokens: Count
    """Number of tokens in the text, or in the prompt."""
    mode: Literal[*MODES] = "forward"
    """``forward``, or ``generate``: the prompt and ``num_new_tokens`` greedy tokens."""
    num_new_tokens: Count = 32
    """Number of new tokens for ``generate``."""
    back_ends: tuple[str, ...] = ("sdpa", "alibi_banded")
    """Attention back ends of the converted model."""
    num_rounds: Count = 3
    """Number of timed runs of each."""


@torch.no_grad()
def time_converted(case: ConvertedCase, device: torch.device, seed: int = 0) -> Iterator[Record]:
    """Yield ``conversion_speed`` records without provenance.

    Raises:
        ValueError: The logits of original and conversion differ, so timing them would be meaningless.
    """
    torch.manual_seed(seed)
    original = MODELS[case.family](case, case.length_tokens + case.num_new_tokens).eval().to(device)
    models = {case.family: original}
    for back_end in case.back_ends:
        models[f"{case.family} as AlibiGPT, {back_end}"] = _converted(original, back_end).to(device)
    tokens = torch.randint(case.vocab_size, (1, case.length_tokens)).to(device)
    expected = original(tokens).logits
    differences = {name: (model(tokens).logits - expected).abs().max().item() for name, model in models.items()}
    if (worst := max(differences.values())) > max_logit_difference(case.length_tokens):
        raise ValueError(f"{case.family}: logits of the conversion differ by {worst:.1e}, so they are not timed")
    run = _forward if case.mode == "forward" else partial(_generate, num_new_tokens=case.num_new_tokens)
    candidates = {name: partial(run, model, tokens) for name, model in models.items()}
    memory = {name: extra_bytes(candidate) for name, candidate in candidates.items()}
    summary = summarize(time_interleaved(candidates, case.num_rounds), case.family)
    for name in models:
        yield {
            "kind": "conversion_speed",
            "name": name,
            "mode": case.mode,
            "dtype": "float32",
            "length_tokens": case.length_tokens,
            "num_new_tokens": case.num_new_tokens if case.mode == "generate" else None,
            **describe_shape(case),
            **summary[name],
            "extra_bytes": memory[name],
            "max_logit_difference": differences[name],
        }


def max_logit_difference(length_tokens: int) -> float:
    """Largest logit difference in float32 between an original and a correct conversion.

    Originals compute the bias from absolute positions. At slopes below 1 it reaches ``length_tokens`` nats, which
    float32 rounds twice, in the product and in the sum. Falcon also rounds to bfloat16, which can exceed this bound.
    """
    return ROUNDING + 2 * torch.finfo(torch.float32).eps * length_tokens


def _converted(original: PreTrainedModel, back_end: str) -> PreTrainedModel:
    with tempfile.TemporaryDirectory() as folder:
        original.save_pretrained(Path(folder, "original"))
        convert(ConvertConfig(model=str(Path(folder, "original")), output_dir=str(Path(folder, "converted"))))
        return load_causal_lm(Path(folder, "converted"), attn_implementation=back_end)


def _forward(model: PreTrainedModel, tokens: Tensor) -> None:
    model(tokens, use_cache=False)


def _generate(model: PreTrainedModel, tokens: Tensor, num_new_tokens: int) -> None:
    model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=num_new_tokens,
        min_new_tokens=num_new_tokens,
        do_sample=False,
        use_cache=True,  # off by default in MPT
        pad_token_id=0,
    )
