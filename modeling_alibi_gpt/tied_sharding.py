# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""FSDP2 with tied embeddings, which transformers 5.23 trains wrongly by its own order of steps. Travels to the Hub."""

from dataclasses import replace
from typing import Any

from torch import nn


class TiedSharding:
    """Base of a model with tied embeddings, before ``PreTrainedModel``: ties them before FSDP2 divides the weights.

    Tied after that, as transformers does, the output layer keeps a copy that no step updates.
    """

    def share_outermost_unit(self) -> None:
        """Leave embeddings and output layer to one unit of FSDP2, the outermost; called after ``post_init``."""
        self._fsdp_plan.pop("lm_head")

    @classmethod
    def maybe_distribute_model(cls, model: nn.Module, distributed_config: Any, mesh_manager: Any) -> nn.Module:
        """Tensor parallelism, which looks for both weights by name; then the tie; then FSDP2."""
        distribute = super().maybe_distribute_model
        if mesh_manager is None or distributed_config.dp_size == 1:
            return distribute(model, distributed_config, mesh_manager)
        model = distribute(model, replace(distributed_config, fsdp_size=1, dp_replicate_size=1), mesh_manager)
        model.tie_weights(recompute_mapping=False)
        model = distribute(model, replace(distributed_config, tp_size=1, pp_size=1), mesh_manager)
        model.config.distributed_config = distributed_config
        model._tp_size = distributed_config.tp_size
        return model
