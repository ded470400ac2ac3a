"""Which tensor becomes which, said once for both ways, and the engine that carries it out shard by shard.

Shapes: H query heads, d head size, D hidden size.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from modeling_alibi_gpt.conversion.source_weights import SourceWeights


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


@dataclass(frozen=True)
class Step:
    """Source tensors that are read together, and the target tensors made of them."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    transform: Transform
    num_bytes: int = 0

    def run(self, read: Callable[[str], Tensor]) -> list[Tensor]:
        """The target tensors.

        Raises:
            ValueError: A source tensor has a shape that the layout cannot split.
        """
        tensors = [read(name) for name in self.sources]
        try:
            return [tensor.contiguous() for tensor in self.transform(tensors)]
        except RuntimeError as error:
            shapes = ", ".join(
                f"{name} {tuple(tensor.shape)}" for name, tensor in zip(self.sources, tensors, strict=True)
            )
            raise ValueError(f"the shape of a tensor does not fit config.json: {shapes}") from error


@dataclass(frozen=True)
class Plan:
    """All steps of a conversion, in the order in which they are written.

    Attributes:
        steps: What is read and written together.
        left_out: Source tensors that are left out on purpose.
    """

    steps: list[Step] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def plan_conversion(
    source: SourceWeights,
    target: PreTrainedModel,
    rules: Iterable[Rule],
    *,
    to_ours: bool,
    tied: bool,
    dtype: torch.dtype | None = None,
    ignored: Sequence[str] = (),
) -> Plan:
    """Decide what is read and written, from names and shapes alone.

    Args:
        source: The checkpoint that is read.
        target: The model to fill, on the meta device.
        rules: The map between both.
        to_ours: Whether AlibiGPT is the target.
        tied: Whether the output layer shares the embedding, on both sides.
        dtype: Of the tensors written; None keeps that of each.
        ignored: Regular expressions of source names that hold no weights.

    Raises:
        ValueError: Source tensors are not used, target tensors not filled, or shapes differ; they are named.
    """
    rules = list(rules)
    if tied:
        _check_tied(source, rules, to_ours)
    else:
        rules.append(Rule((LM_HEAD,), (LM_HEAD,), SAME))
    expected = {name: tensor.shape for name, tensor in target.state_dict().items() if not (tied and name == LM_HEAD)}
    plan, filled, used = Plan(), set(), {LM_HEAD} if tied else set()
    for rule in _expand(rules, target.config.num_hidden_layers):
        if to_ours:
            step = Step(rule.foreign, tuple(_full_name(target, name) for name in rule.ours), rule.layout.to_ours)
        else:
            assert rule.layout.to_foreign is not None, rule
            step = Step(rule.ours, tuple(_full_name(target, name) for name in rule.foreign), rule.layout.to_foreign)
        used.update(step.sources)
        if not step.targets:
            plan.left_out.extend(name for name in step.sources if name in source)
        elif all(name in source for name in step.sources):
            plan.steps.append(_checked(step, source, expected, dtype))
            filled.update(step.targets)
    unused = sorted(
        name for name in source if name not in used and not any(re.fullmatch(pattern, name) for pattern in ignored)
    )
    if unused:
        raise ValueError(f"{source.folder}: {_listed(unused)} in the weights, for which the model has no place")
    if missing := sorted(set(expected) - filled):
        raise ValueError(f"{source.folder}: the weights hold nothing for {_listed(missing)} of the model to be made")
    return plan


def write_weights(
    plan: Plan, source: SourceWeights, folder: Path, *, dtype: torch.dtype | None, max_shard_bytes: int
) -> None:
    """Carry out a plan: read the tensors of one step at a time, write a file as soon as it is full.

    One file is ``model.safetensors``; several are numbered, with the index that transformers reads.
    """
    shards: list[list[Step]] = [[]]
    for step in plan.steps:
        if shards[-1] and sum(other.num_bytes for other in shards[-1]) + step.num_bytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(step)
    index: dict[str, str] = {}
    with tqdm(total=len(plan.steps), desc="converting", unit="tensor", disable=None) as progress:
        for number, steps in enumerate(shards, start=1):
            name = SAFE_WEIGHTS_NAME
            if len(shards) > 1:
                name = name.replace(".safetensors", f"-{number:05d}-of-{len(shards):05d}.safetensors")
            tensors: dict[str, Tensor] = {}
            for step in steps:
                made = (tensor.to(dtype or tensor.dtype) for tensor in step.run(source.read))
                tensors.update(zip(step.targets, made, strict=True))
                progress.update()
            save_file(tensors, folder / name, metadata={"format": "pt"})
            index.update(dict.fromkeys(tensors, name))
    if len(shards) > 1:
        total = sum(step.num_bytes for step in plan.steps)
        content = {"metadata": {"total_size": total}, "weight_map": index}
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")


def _expand(rules: Iterable[Rule], num_layers: int) -> Iterable[Rule]:
    for rule in rules:
        in_layers = "{}" in "".join(rule.foreign + rule.ours)
        yield from (rule.of_layer(layer_idx) for layer_idx in range(num_layers)) if in_layers else (rule,)


def _full_name(target: PreTrainedModel, name: str) -> str:
    return name if name == LM_HEAD else f"{target.base_model_prefix}.{name}"


def _checked(step: Step, source: SourceWeights, expected: Mapping[str, torch.Size], dtype: torch.dtype | None) -> Step:
    """The step with its size in bytes, found by running it on tensors without data."""
    num_bytes = 0
    for name, tensor in zip(step.targets, step.run(source.describe), strict=True):
        if name in expected and tensor.shape != expected[name]:
            raise ValueError(
                f"{source.folder}: {', '.join(step.sources)} would make {name} of {tuple(tensor.shape)}, "
                f"config.json asks for {tuple(expected[name])}"
            )
        num_bytes += tensor.numel() * (dtype or tensor.dtype).itemsize
    return Step(step.sources, step.targets, step.transform, num_bytes)


def _check_tied(source: SourceWeights, rules: Iterable[Rule], to_ours: bool) -> None:
    """Make sure that an output layer which is stored although it is tied says the same as the embedding."""
    (rule,) = [rule for rule in rules if rule.ours == ("embed_tokens.weight",)]
    (embedding,) = rule.foreign if to_ours else rule.ours
    if LM_HEAD in source and embedding in source and not torch.equal(source.read(LM_HEAD), source.read(embedding)):
        raise ValueError(
            f"{source.folder}: tie_word_embeddings is true in config.json, but {LM_HEAD} differs from {embedding}; "
            "set tie_word_embeddings to false there if the output layer was trained on its own"
        )


def _listed(names: Sequence[str], longest: int = 8) -> str:
    more = f" and {len(names) - longest} more" if len(names) > longest else ""
    return f"{len(names)} tensor{'s'[: len(names) > 1]} ({', '.join(names[:longest])}{more})"
