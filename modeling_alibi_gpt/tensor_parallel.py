# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Tensor parallelism of what is not a linear layer: slopes and per-head norms. Travels to the Hub.

Every rank attends with its own heads, an equal share in their order. Slopes and norms are small, so each rank holds
all of them; the style in the plan only gives their modules the mesh, and these ask here for what is theirs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, TensorParallelLayer


if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard


class HeadParallel(TensorParallelLayer):
    """Style that sets ``head_mesh``, over whose ranks heads are split, in every part of a module that has it as None.

    Raises:
        ValueError: The heads cannot be split evenly.
    """

    def install_forward(self, module: nn.Module, mesh: Any) -> nn.Module:
        num_heads, num_ranks = module.config.num_key_value_heads, mesh.size()
        if num_heads % num_ranks:
            raise ValueError(f"num_key_value_heads ({num_heads}) must be a multiple of tp_size ({num_ranks})")
        for part in module.modules():
            if hasattr(part, "head_mesh"):
                part.head_mesh = mesh
        return module


def heads_of_rank(states: Tensor, head_mesh: Any | None) -> Tensor:
    """What ``(..., H)`` holds for the heads of this rank; the gradients of all ranks meet again in the whole."""
    if head_mesh is None:
        return states
    whole = DTensor.from_local(states, head_mesh, [Replicate()], run_check=False)
    return whole.redistribute(placements=[Shard(-1)]).to_local()


def shared_by_ranks(weight: Tensor, head_mesh: Any | None) -> Tensor:
    """A weight that each rank uses on its own heads only: its gradient is the sum over the ranks.

    The style ``replicated_with_grad_allreduce`` of transformers 5.23 sums what has accumulated, and so adds earlier
    micro-batches once for every rank.
    """
    if head_mesh is None:
        return weight
    return DTensor.from_local(weight, head_mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])


ALL_PARALLEL_STYLES.register("alibi_gpt_heads", HeadParallel())
