# Copyright 2026 The AlibiGPT authors. Licensed under the Apache License, Version 2.0.
"""Continuous batching without FlashAttention, which has no paged form of ALiBi. Exported to the Hub."""

from dataclasses import replace
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig


class ContinuousBatching:
    """Mixin, placed before ``GenerationMixin``, that keeps the attention back end of a model while it batches.

    Where FlashAttention is installed, transformers would switch to it.
    """

    def init_continuous_batching(
        self,
        generation_config: GenerationConfig | None = None,
        continuous_batching_config: ContinuousBatchingConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """The manager of ``GenerationMixin``.

        Raises:
            ValueError: The attention back end is FlashAttention.
        """
        name = self.config._attn_implementation
        if "flash" in name:
            raise ValueError(f"continuous batching needs attn_implementation='sdpa' or 'eager', got {name!r}")
        generation = generation_config or self.generation_config
        found = continuous_batching_config or getattr(generation, "continuous_batching_config", None)
        found = replace(found or ContinuousBatchingConfig(), auto_switch_to_flash=False)
        return super().init_continuous_batching(generation_config, found, **kwargs)
