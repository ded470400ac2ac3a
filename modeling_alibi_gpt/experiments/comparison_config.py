"""Settings of a comparison."""

from dataclasses import field
from typing import Annotated, Any

from modeling_alibi_gpt.experiments.budgets import check_budgets
from modeling_alibi_gpt.runtime.config import Distinct, UserPath, config_dataclass
from modeling_alibi_gpt.runtime.record_types import AS_TRAINED
from modeling_alibi_gpt.runtime.run_names import check_names


_OF_RUNS = {"models", "names", "overrides", "output"}


@config_dataclass
class ComparisonConfig:
    """Settings of ``alibi-gpt compare``."""

    name: str
    """Name of the comparison in its records."""
    corpus: str | None = None
    """Name of the training text, for tables and figures; defaults to ``name``."""
    experiment: UserPath | dict[str, Any]
    """Path of the experiment that every run is based on, or its contents as a mapping."""
    experiment_overrides: list[str] = field(default_factory=list)
    """``a.b=value`` assignments that override it."""
    variants: dict[str, dict[str, Any] | None]
    """Maps the name of each variant to fields of ``AlibiGPTConfig``. A variant may also set
    ``position_learning_rate``, ``alibi_beta_schedule`` and any ``training.KEY`` of the experiment, such as
    ``training.learning_rate``.
    """
    inference_overrides: dict[str, dict[str, dict[str, Any] | None] | None] = field(default_factory=dict)
    """Maps the name of a variant to named sets of ``AlibiGPTConfig`` fields, such as ``alibi_scaling``. Its trained
    model is evaluated with each of them, in addition to the evaluation as trained.
    """
    reference: str
    """Variant that the others are compared with, seed by seed."""
    seeds: Annotated[list[int], Distinct]
    """Training seeds, the same for every variant."""
    budgets_steps: list[int] | None = None
    """Ascending training budgets in optimizer steps. Every variant is trained and evaluated for each budget, with a
    schedule that warms up, stays at the peak rate and decays. Runs of different budgets share their steps up to the
    decay. Replaces ``max_steps`` and ``lr_scheduler_type``. Null uses the schedule of the experiment.
    """
    cooldown_share: float = 0.2
    """Share of each budget in which the learning rate decays."""
    evaluation: dict[str, Any]
    """Settings of ``ExtrapolationConfig`` (text, lengths, protocols), or of ``RecallConfig`` if the models learn a
    task.
    """
    output_dir: UserPath
    """Folder for the runs and ``comparison.jsonl``."""
    trainings_dir: UserPath | None = None
    """Folder of training runs that comparisons and sweeps share. A run with the same settings, text and seed is
    trained once and reused. Null keeps the runs of this comparison in ``output_dir``.
    """

    def __post_init__(self) -> None:
        for name in [self.reference, *self.inference_overrides]:
            if name not in self.variants:
                raise ValueError(f"{name!r} is not a variant: expected one of {', '.join(self.variants)}")
        check_names("variants", self.variants)
        for variant, overrides in self.inference_overrides.items():
            check_names(f"inference_overrides.{variant}", overrides or {})
            if AS_TRAINED in (overrides or {}):
                raise ValueError(
                    f"inference_overrides.{variant}: {AS_TRAINED!r} is reserved, because every model is evaluated as "
                    "trained; choose another name"
                )
        if self.budgets_steps is not None:
            check_budgets(self.budgets_steps, self.cooldown_share)
        elif self.cooldown_share != ComparisonConfig.cooldown_share:
            raise ValueError("cooldown_share would have no effect without budgets_steps")
        if "source" not in self.evaluation:
            raise ValueError("evaluation.source is missing: set the text to evaluate on")
        if self.evaluation.get("plugins"):
            raise ValueError("evaluation.plugins cannot be set: name them in the experiment")
        for key in _OF_RUNS & self.evaluation.keys():
            raise ValueError(
                f"evaluation.{key} cannot be set: it follows from variants, inference_overrides and output_dir"
            )
