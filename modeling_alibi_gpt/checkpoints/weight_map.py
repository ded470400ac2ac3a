"""Which tensor becomes which, said once for both ways.

Shapes: H query heads, d head size.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


LM_HEAD = "lm_head.weight"

# From the tensors on one side of a rule to those on its other side.
Transform = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the tensors of one rule are laid out on its two sides.

    Attributes:
        to_ours: From the tensors of the other family to those of AlibiGPT.
        to_foreign: The inverse; None where there is no way out.
    """

    to_ours: Transform
    to_foreign: Transform | None = None


@dataclass(frozen=True)
class Rule:
    """Tensors of the other family that together are tensors of AlibiGPT.

    Names are written without the prefix of the base model, and ``{}`` stands for the number of every layer.

    Attributes:
        foreign: Names in the other family.
        ours: Names in AlibiGPT; none if the tensors are left out on purpose.
        layout: How one becomes the other.
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
    """Queries, keys and values one below the other: ``(sum(sizes), ...)`` and parts of ``sizes`` rows."""
    return Layout(
        to_ours=lambda tensors: tensors[0].split(sizes),
        to_foreign=lambda tensors: [torch.cat(tuple(tensors))],
    )


def rows_by_head(num_heads: int) -> Layout:
    """Query, key and value of each head one below the other: ``(H * 3 * d, ...)`` and three of ``(H * d, ...)``."""

    def split(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        heads = tensors[0].unflatten(0, (num_heads, 3, -1))  # (H, 3, d, ...)
        return [part.flatten(0, 1) for part in heads.unbind(1)]

    def fuse(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        heads = [tensor.unflatten(0, (num_heads, -1)) for tensor in tensors]
        return [torch.stack(heads, dim=1).flatten(0, 2)]

    return Layout(to_ours=split, to_foreign=fuse)


def transposed(layout: Layout) -> Layout:
    """A layout whose foreign side is transposed, as in GPT-2, where a linear layer is ``(in, out)``."""
    backward = layout.to_foreign
    return Layout(
        to_ours=lambda tensors: layout.to_ours(_transpose(tensors)),
        to_foreign=None if backward is None else lambda tensors: _transpose(backward(tensors)),
    )


def module_rules(names: Mapping[str, str], parameters: Sequence[str], layout: Layout = SAME) -> list[Rule]:
    """One rule for each module, by its foreign and our name, and each of its ``parameters``."""
    return [
        Rule((f"{foreign}.{parameter}",), (f"{ours}.{parameter}",), layout)
        for foreign, ours in names.items()
        for parameter in parameters
    ]


def qkv_rules(foreign: str, parameters: Sequence[str], layout: Layout) -> list[Rule]:
    """Rules for the module ``foreign``, whose layout splits it into the projections of queries, keys and values."""
    parts = [f"layers.{{}}.self_attn.{part}_proj" for part in ("q", "k", "v")]
    return [
        Rule((f"{foreign}.{parameter}",), tuple(f"{part}.{parameter}" for part in parts), layout)
        for parameter in parameters
    ]


def zero_bias_rules(rules: Iterable[Rule]) -> list[Rule]:
    """Rules for weights without biases on the foreign side, to which ours add biases of zeros. There is no way out."""

    def with_zeros(rule: Rule) -> Rule:
        def split(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
            weights = list(rule.layout.to_ours(tensors))
            return weights + [weight.new_zeros(weight.shape[0]) for weight in weights]

        biases = tuple(name.removesuffix("weight") + "bias" for name in rule.ours)
        return Rule(rule.foreign, rule.ours + biases, Layout(to_ours=split))

    return [with_zeros(rule) for rule in rules]


def expand_layers(rules: Iterable[Rule], num_layers: int) -> Iterator[Rule]:
    """The rules with those of layers written out for every layer."""
    for rule in rules:
        in_layers = "{}" in "".join(rule.foreign + rule.ours)
        yield from (rule.of_layer(layer_idx) for layer_idx in range(num_layers)) if in_layers else (rule,)
