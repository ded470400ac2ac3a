"""Conversion of weights: plan it from names and shapes alone, then execute the plan file by file."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from modeling_alibi_gpt.checkpoints.source_weights import SourceWeights
from modeling_alibi_gpt.checkpoints.weight_map import LM_HEAD, SAME, Rule, Transform, expand_layers


@dataclass(frozen=True)
class Step:
    """Source tensors that are read together, and the target tensors that they become."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    transform: Transform
    num_bytes: int = 0

    def run(self, read: Callable[[str], Tensor]) -> list[Tensor]:
        """Read the source tensors and return the target tensors.

        Raises:
            ValueError: The layout cannot split the shape of a source tensor.
        """
        tensors = [read(name) for name in self.sources]
        try:
            return [tensor.contiguous() for tensor in self.transform(tensors)]
        except RuntimeError as error:
            shapes = zip(self.sources, (tuple(tensor.shape) for tensor in tensors), strict=True)
            found = ", ".join(f"{name} {shape}" for name, shape in shapes)
            raise ValueError(f"the shape of a tensor does not match config.json: {found}") from error


@dataclass(frozen=True)
class Plan:
    """All steps of a conversion, in the order of writing.

    Attributes:
        steps: Groups of tensors that are read and written together.
        left_out: Source tensors that are left out on purpose.
    """

    steps: list[Step] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def widest_dtype(self, source: SourceWeights) -> torch.dtype:
        """The dtype in which ``from_pretrained``, which loads all weights in one, rounds none of them."""
        names = (name for step in self.steps for name in step.sources)
        return reduce(torch.promote_types, (source.describe(name).dtype for name in names))


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
    """Plan a conversion from names and shapes alone.

    Args:
        source: Weights of the source checkpoint.
        target: The model to fill, on the meta device.
        rules: The mapping between both.
        to_ours: Whether AlibiGPT is the target.
        tied: Whether the output layer shares the embedding, on both sides.
        dtype: Dtype of the tensors to write; None keeps the dtype of each tensor.
        ignored: Regular expressions for the names of source tensors that are not weights.

    Raises:
        ValueError: Source tensors are not used, the target has no place for them or is not filled, or shapes differ.
            The message names them.
    """
    rules = list(rules)
    if tied:
        _check_tied(source, rules, to_ours)
    else:
        rules.append(Rule((LM_HEAD,), (LM_HEAD,), SAME))
    expected = {name: tensor.shape for name, tensor in target.state_dict().items() if not (tied and name == LM_HEAD)}
    plan, filled, used = Plan(), set(), {LM_HEAD} if tied else set()
    for step in _steps(rules, target, to_ours):
        used.update(step.sources)
        if not step.targets:
            plan.left_out.extend(name for name in step.sources if name in source)
        elif all(name in source for name in step.sources):
            plan.steps.append(_checked(step, source, expected, dtype))
            filled.update(step.targets)
    if surplus := filled - set(expected):
        raise ValueError(f"{source.folder}: the target model, as its config says, has no place for {_listed(surplus)}")
    unused = [name for name in source if name not in used and not any(re.fullmatch(kind, name) for kind in ignored)]
    if unused:
        raise ValueError(f"{source.folder}: the target model has no equivalent of the weights {_listed(unused)}")
    if missing := set(expected) - filled:
        raise ValueError(f"{source.folder}: the weights lack {_listed(missing)}, which the target model needs")
    return plan


def write_weights(
    plan: Plan, source: SourceWeights, folder: Path, *, dtype: torch.dtype | None, max_shard_bytes: int
) -> None:
    """Execute a plan: read the tensors of one step at a time, and write a file as soon as it is full.

    A single file is ``model.safetensors``; several files are numbered and have the index that transformers reads.

    Raises:
        ValueError: A weight overflows in the dtype.
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
                for target, tensor in zip(step.targets, step.run(source.read), strict=True):
                    tensors[target] = tensor if dtype is None else _in_dtype(target, tensor, dtype)
                progress.update()
            save_file(tensors, folder / name, metadata={"format": "pt"})
            index.update(dict.fromkeys(tensors, name))
    if len(shards) > 1:
        total = sum(step.num_bytes for step in plan.steps)
        content = {"metadata": {"total_size": total}, "weight_map": index}
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")


def _in_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    made = tensor.to(dtype)
    if tensor.isfinite().all() and not made.isfinite().all():
        largest, expected = tensor.abs().max(), str(dtype).removeprefix("torch.")
        raise ValueError(f"{name} has weights up to {largest:g}, which overflow in {expected}")
    return made


def _steps(rules: Iterable[Rule], target: PreTrainedModel, to_ours: bool) -> Iterator[Step]:
    for rule in expand_layers(rules, target.config.num_hidden_layers):
        sources, targets, transform = rule.foreign, rule.ours, rule.layout.to_ours
        if not to_ours:
            assert rule.layout.to_foreign is not None, rule
            sources, targets, transform = rule.ours, rule.foreign, rule.layout.to_foreign
        yield Step(sources, tuple(_full_name(target, name) for name in targets), transform)


def _full_name(target: PreTrainedModel, name: str) -> str:
    return name if name == LM_HEAD else f"{target.base_model_prefix}.{name}"


def _checked(step: Step, source: SourceWeights, expected: Mapping[str, torch.Size], dtype: torch.dtype | None) -> Step:
    """The step with its size in bytes, determined by running it on the meta device."""
    num_bytes = 0
    for name, tensor in zip(step.targets, step.run(source.describe), strict=True):
        if tensor.shape != expected.get(name, tensor.shape):
            raise ValueError(
                f"{source.folder}: {', '.join(step.sources)} would give {name} the shape {tuple(tensor.shape)}, but "
                f"config.json requires {tuple(expected[name])}"
            )
        num_bytes += tensor.numel() * (dtype or tensor.dtype).itemsize
    return Step(step.sources, step.targets, step.transform, num_bytes)


def _check_tied(source: SourceWeights, rules: Iterable[Rule], to_ours: bool) -> None:
    """Check that a stored output layer equals the embedding that it is tied to."""
    (rule,) = [rule for rule in rules if rule.ours == ("embed_tokens.weight",)]
    (embedding,) = rule.foreign if to_ours else rule.ours
    if LM_HEAD in source and embedding in source and not torch.equal(source.read(LM_HEAD), source.read(embedding)):
        raise ValueError(
            f"{source.folder}: tie_word_embeddings is true in config.json, but {LM_HEAD} differs from {embedding}; "
            "set it to false if the output layer was trained separately"
        )


def _listed(names: Collection[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{', '.join(sorted(names)[:8])}{more}"
