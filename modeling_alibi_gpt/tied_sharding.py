# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""FSDP2 with tied embeddings, which transformers 5.23 trains incorrectly by default. Exported to the Hub."""

from dataclasses import replace
from typing import Any

from torch import nn


class TiedSharding:
    """Mixin, placed before ``PreTrainedModel``, that ties embeddings before FSDP2 shards the weights.

    transformers ties them afterwards, which leaves the output layer a copy that no optimizer step updates.
    """

    def share_outermost_unit(self) -> None:
        """Keep embeddings and output layer in the root FSDP2 unit. Call it after ``post_init``."""
        self._fsdp_plan.pop("lm_head")

    @classmethod
    def maybe_distribute_model(cls, model: nn.Module, distributed_config: Any, mesh_manager: Any) -> nn.Module:
        """Apply tensor parallelism, which looks up both weights by name; then tie them; then apply FSDP2."""
        distribute = super().maybe_distribute_model
        if mesh_manager is None or distributed_config.dp_size == 1:
            return distribute(model, distributed_config, mesh_manager)
        model = distribute(model, replace(distributed_config, fsdp_size=1, dp_replicate_size=1), mesh_manager)
        model.tie_weights(recompute_mapping=False)
        model = distribute(model, replace(distributed_config, tp_size=1, pp_size=1), mesh_manager)
        model.config.distributed_config = distributed_config
        model._tp_size = distributed_config.tp_size
        return model
