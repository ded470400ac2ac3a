"""Settings of a comparison."""

from dataclasses import field
from typing import Any

from modeling_alibi_gpt.experiments.budgets import check_budgets
from modeling_alibi_gpt.experiments.run_names import check_names
from modeling_alibi_gpt.runtime.config import config_dataclass
from modeling_alibi_gpt.runtime.record_types import AS_TRAINED


_OF_RUNS = {"models", "names", "overrides", "output"}


@config_dataclass
class ComparisonConfig:
    """Settings of ``alibi-gpt compare``."""

    name: str
    """Of the comparison, in its records."""
    corpus: str | None = None
    """Name of the training text, for tables and figures; defaults to ``name``."""
    experiment: str | dict[str, Any]
    """Path of the experiment that every run starts from, or the mapping itself."""
    experiment_overrides: list[str] = field(default_factory=list)
    """``a.b=value`` assignments that override it."""
    variants: dict[str, dict[str, Any] | None]
    """Maps the name of each variant to its fields of ``AlibiGPTConfig``. A variant may also set
    ``position_learning_rate``, ``alibi_beta_schedule`` and any ``training.KEY`` of its experiment, such as
    ``training.learning_rate``.
    """
    inference_overrides: dict[str, dict[str, dict[str, Any] | None] | None] = field(default_factory=dict)
    """Maps the name of a variant to named settings: fields of ``AlibiGPTConfig``, such as ``alibi_scaling``, with
    which its trained model is also evaluated. It is always evaluated as trained.
    """
    reference: str
    """Variant with which the others are compared, seed by seed."""
    seeds: list[int]
    """Training seeds, the same for every variant."""
    budgets_steps: list[int] | None = None
    """Ascending numbers of optimizer steps. Every variant is trained for each of them and evaluated, with a schedule
    that warms up, stays at the peak rate and decays. Trainings of different budgets share their steps up to the decay.
    Replaces ``max_steps`` and ``lr_scheduler_type``. Null trains as the experiment says.
    """
    cooldown_share: float = 0.2
    """Share of each budget in which the learning rate decays."""
    evaluation: dict[str, Any]
    """Settings of ``ExtrapolationConfig`` (text, lengths, protocols), or of ``RecallConfig`` if the models learn a
    task.
    """
    output_dir: str
    """Folder for the runs and ``comparison.jsonl``."""
    trainings_dir: str | None = None
    """Folder of trainings that comparisons and sweeps share. A training with the same settings, text and seed is run
    once and reused. Null keeps the trainings of this comparison in ``output_dir``.
    """

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be one or more, each once, got {self.seeds}")
        for name in [self.reference, *self.inference_overrides]:
            if name not in self.variants:
                raise ValueError(f"{name!r} is no variant; there are {', '.join(self.variants)}")
        check_names("variants", self.variants)
        for variant, overrides in self.inference_overrides.items():
            check_names(f"inference_overrides.{variant}", overrides or {})
            if AS_TRAINED in (overrides or {}):
                raise ValueError(
                    f"inference_overrides.{variant}: {AS_TRAINED!r} is what every model is read as in any case"
                )
        if self.budgets_steps is not None:
            check_budgets(self.budgets_steps, self.cooldown_share)
        if "source" not in self.evaluation:
            raise ValueError("evaluation.source is missing: say which text the models read")
        for key in _OF_RUNS & self.evaluation.keys():
            raise ValueError(
                f"evaluation.{key} cannot be set: it follows from variants, inference_overrides and output_dir"
            )
