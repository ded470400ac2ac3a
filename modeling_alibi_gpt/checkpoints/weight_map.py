"""Rules that map tensors between another family and AlibiGPT, in both directions.

Shapes: H query heads, d head size.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


LM_HEAD = "lm_head.weight"

# From the tensors on one side of a rule to those on the other side.
Transform = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The conversion between the two sides of a rule.

    Attributes:
        to_ours: From the tensors of the other family to those of AlibiGPT.
        to_foreign: The inverse; None if export is not possible.
    """

    to_ours: Transform
    to_foreign: Transform | None = None


@dataclass(frozen=True)
class Rule:
    """Tensors of the other family that correspond to tensors of AlibiGPT.

    Names have no prefix of the base model, and ``{}`` is a placeholder for the number of a layer.

    Attributes:
        foreign: Names in the other family.
        ours: Names in AlibiGPT; empty if the tensors are left out on purpose.
        layout: Conversion between them.
    """

    foreign: tuple[str, ...]
    ours: tuple[str, ...]
    layout: Layout

    def of_layer(self, layer_idx: int) -> "Rule":
        foreign, ours = (tuple(name.format(layer_idx) for name in names) for names in (self.foreign, self.ours))
        return Rule(foreign, ours, self.layout)


def _same(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return tensors


def _transpose(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return [tensor.T for tensor in tensors]


SAME = Layout(to_ours=_same, to_foreign=_same)
TRANSPOSED = Layout(to_ours=_transpose, to_foreign=_transpose)
LEFT_OUT = Layout(to_ours=lambda tensors: [])


def stacked_rows(*sizes: int) -> Layout:
    """Queries, keys and values stacked by rows: ``(sum(sizes), ...)`` from parts of ``sizes`` rows."""
    return Layout(
        to_ours=lambda tensors: tensors[0].split(sizes),
        to_foreign=lambda tensors: [torch.cat(tuple(tensors))],
    )


def rows_by_head(num_heads: int) -> Layout:
    """Query, key and value interleaved by head: ``(H * 3 * d, ...)`` from three of ``(H * d, ...)``."""

    def split(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        heads = tensors[0].unflatten(0, (num_heads, 3, -1))  # (H, 3, d, ...)
        return [part.flatten(0, 1) for part in heads.unbind(1)]

    def fuse(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        heads = [tensor.unflatten(0, (num_heads, -1)) for tensor in tensors]
        return [torch.stack(heads, dim=1).flatten(0, 2)]

    return Layout(to_ours=split, to_foreign=fuse)


def transposed(layout: Layout) -> Layout:
    """A layout with a transposed foreign side, as in GPT-2, whose linear layers are ``(in, out)``."""
    backward = layout.to_foreign
    return Layout(
        to_ours=lambda tensors: layout.to_ours(_transpose(tensors)),
        to_foreign=None if backward is None else lambda tensors: _transpose(backward(tensors)),
    )


def module_rules(names: Mapping[str, str], parameters: Sequence[str], layout: Layout = SAME) -> list[Rule]:
    """One rule per module (a mapping from foreign to AlibiGPT names) and parameter."""
    return [
        Rule((f"{foreign}.{parameter}",), (f"{ours}.{parameter}",), layout)
        for foreign, ours in names.items()
        for parameter in parameters
    ]


def qkv_rules(foreign: str, parameters: Sequence[str], layout: Layout) -> list[Rule]:
    """Rules for the fused module ``foreign``, which the layout splits into query, key and value projections."""
    parts = [f"layers.{{}}.self_attn.{part}_proj" for part in ("q", "k", "v")]
    return [
        Rule((f"{foreign}.{parameter}",), tuple(f"{part}.{parameter}" for part in parts), layout)
        for parameter in parameters
    ]


def zero_bias_rules(rules: Iterable[Rule]) -> list[Rule]:
    """Rules for foreign weights without biases, to which AlibiGPT adds zero biases. Export is not possible."""

    def with_zeros(rule: Rule) -> Rule:
        def split(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
            weights = list(rule.layout.to_ours(tensors))
            return weights + [weight.new_zeros(weight.shape[0]) for weight in weights]

        biases = tuple(name.removesuffix("weight") + "bias" for name in rule.ours)
        return Rule(rule.foreign, rule.ours + biases, Layout(to_ours=split))

    return [with_zeros(rule) for rule in rules]


def expand_layers(rules: Iterable[Rule], num_layers: int) -> Iterator[Rule]:
    """The rules, with layer rules repeated for every layer."""
    for rule in rules:
        in_layers = "{}" in "".join(rule.foreign + rule.ours)
        yield from (rule.of_layer(layer_idx) for layer_idx in range(num_layers)) if in_layers else (rule,)
