# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Tensor parallelism of slopes and per-head norms, which are not linear layers. Exported to the Hub.

Each rank attends with an equal, contiguous share of the heads. Slopes and norms are small, so every rank keeps all of
them. The parallel style passes the mesh to their modules, which select their share with the functions below.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, TensorParallelLayer


if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard


class HeadParallel(TensorParallelLayer):
    """Parallel style that sets ``head_mesh``, over whose ranks heads are split, on each submodule that declares it.

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
    """Select this rank's heads from ``(..., H)``. The backward pass gathers the gradients of all ranks."""
    if head_mesh is None:
        return states
    whole = DTensor.from_local(states, head_mesh, [Replicate()], run_check=False)
    return whole.redistribute(placements=[Shard(-1)]).to_local()


def shared_by_ranks(weight: Tensor, head_mesh: Any | None) -> Tensor:
    """Return a weight that each rank applies to its own heads only; its gradient is summed over the ranks.

    The style ``replicated_with_grad_allreduce`` of transformers 5.23 reduces the accumulated gradient, so it counts
    earlier micro-batches once per rank.
    """
    if head_mesh is None:
        return weight
    return DTensor.from_local(weight, head_mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])


class AlibiGPTHeadRMSNorm(nn.RMSNorm):
    """RMSNorm over ``head_dim`` with one weight for all heads, shared by all tensor-parallel ranks."""

    head_mesh: Any | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = shared_by_ranks(self.weight, self.head_mesh)
        return F.rms_norm(hidden_states, self.normalized_shape, weight, self.eps)


ALL_PARALLEL_STYLES.register("alibi_gpt_heads", HeadParallel())
