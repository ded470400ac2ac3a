"""Margins of a model on a text: bounds that its own scores keep, and a record of what follows from them."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modeling_alibi_gpt.alibi import alibi_windows
from modeling_alibi_gpt.cache_alibi_gpt import measured_margins
from modeling_alibi_gpt.evaluation.margins import MarginsConfig, measure_margins
from modeling_alibi_gpt.runtime.records import read_records
from tests.support.exact_cases import make_model


@torch.no_grad()
def test_margins_bound_what_keys_can_win() -> None:
    """In the attention weights themselves: beyond a window there is no more than the tolerance."""
    model = make_model("alibi", "eager", alibi_beta=16.0)
    tokens = torch.randint(61, (2, 300), generator=torch.Generator().manual_seed(1))
    margins = measured_margins(model, tokens)
    assert margins.shape == (2, 6) and (margins > 0).all()
    distance = torch.arange(300)[:, None] - torch.arange(300)
    slopes = model.config.base_alibi_slopes()
    has_far_keys = False
    for tolerance in (1e-1, 1e-3):
        for weights, layer_margins in zip(model(tokens, output_attentions=True).attentions, margins, strict=True):
            for head, window in enumerate(alibi_windows(slopes, layer_margins, tolerance).tolist()):
                left_out = (weights[:, head].double() * (distance >= window)).sum(-1)
                has_far_keys |= window < 300
                assert left_out.max() <= tolerance
    assert has_far_keys


def test_the_record_names_windows_of_every_head(
    make_folder: Callable[[str], str], source: str, tmp_path: Path
) -> None:
    output = tmp_path / "margins.jsonl"
    config = MarginsConfig(model=make_folder("alibi"), source=source, length_tokens=200, output=str(output))
    record = measure_margins(config)
    assert read_records(output) == [record]
    for slopes, margins, windows in zip(
        record["slopes_by_layer"], record["margins_nats_by_layer"], record["windows_tokens_by_layer"], strict=True
    ):
        for slope, margin, window in zip(slopes, margins, windows, strict=True):
            left_out = margin - slope * window - math.log(-math.expm1(-slope))
            assert left_out <= math.log(record["tolerance"]) + 1e-9


def test_positions_without_slopes_are_refused() -> None:
    model = make_model("rope")
    with pytest.raises(ValueError, match="one slope per head"):
        measured_margins(model, torch.zeros(1, 4, dtype=torch.long))
