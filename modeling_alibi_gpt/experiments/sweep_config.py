"""Settings of a sweep of beta: its mode, its grid or range, its seeds and its outputs."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from sqlalchemy import URL

from modeling_alibi_gpt.evaluation.measurement import MeasurementConfig
from modeling_alibi_gpt.runtime.config import Count, Distinct, Positive, UserPath, config_dataclass


LEARNABLE = ("beta", "slopes")
_OF_TEXT = (*(each.name for each in dataclasses.fields(MeasurementConfig)), "length_tokens")
_NOT_OF_POSTHOC = ("experiment_overrides", "seeds", "pruning", "trained", "trainings_dir")
_OF_SAMPLING = ("beta_low", "beta_high", "num_trials", "sampler_seed")


@config_dataclass
class SweepConfig(MeasurementConfig):
    """Settings of ``alibi-gpt sweep``. The text settings apply to ``posthoc``; ``retrain`` uses those of the
    experiment.
    """

    UNUSED: ClassVar[Mapping[str, str]] = {"stride_tokens": "a sweep reads windows without overlap"}

    mode: Literal["retrain", "posthoc"] = "retrain"
    """``retrain`` (one training per beta and seed) or ``posthoc`` (one checkpoint, evaluated at each beta)."""
    output_dir: UserPath
    """Folder for trials, best configuration, best model and the default study."""
    experiment: UserPath | dict[str, Any] | None = None
    """For ``retrain``: path of an experiment, or its contents as a mapping."""
    experiment_overrides: list[str] = dataclasses.field(default_factory=list)
    """For ``retrain``: ``a.b=value`` assignments that override the experiment."""
    checkpoint: UserPath | None = None
    """For ``posthoc``: folder of the model."""
    length_tokens: Count | None = None
    """For ``posthoc``: window length; null is the training length."""
    betas: list[Positive] | None = None
    """Grid of betas; null samples ``num_trials`` values between ``beta_low`` and ``beta_high`` with TPE, on a log
    scale.
    """
    beta_low: Positive = 0.125
    """Smallest sampled beta."""
    beta_high: Positive = 8.0
    """Largest sampled beta."""
    num_trials: Count = 16
    """Number of sampled betas."""
    sampler_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of TPE."""
    seeds: Annotated[list[int], Distinct] = dataclasses.field(default_factory=lambda: [0])
    """For ``retrain``: training seeds, the same for every beta, so that betas are compared seed by seed."""
    pruning: bool = False
    """For ``retrain``: stop a beta if the loss of its first seed is above the median of the other betas at one of
    its evaluations.
    """
    trained: list[Literal[*LEARNABLE]] = dataclasses.field(default_factory=lambda: ["beta"])
    """For ``retrain``: parameters to learn for comparison (``beta``, ``slopes``), each with every seed."""
    study_name: str = "beta"
    """Name of the study in the storage; learned parameters have their own study, ``NAME-trained``."""
    trainings_dir: UserPath | None = None
    """For ``retrain``: folder of training runs that comparisons and sweeps share. A run with the same settings, text
    and seed is trained once and reused. Null keeps the runs of this sweep in ``output_dir``.
    """
    storage: str | None = None
    """Optuna storage URL that workers share; null is an SQLite file in ``output_dir``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        inputs = {"retrain": ("experiment", "checkpoint"), "posthoc": ("checkpoint", "experiment")}
        needed, unused = inputs[self.mode]
        if getattr(self, needed) is None or getattr(self, unused) is not None:
            raise ValueError(f"mode {self.mode} needs '{needed}' and does not use '{unused}'")
        if self.betas == [] or self.beta_low >= self.beta_high:
            raise ValueError("set at least one beta in 'betas', or beta_low below beta_high")
        if self.mode == "retrain":
            self._refuse_unused(_OF_TEXT, "mode retrain reads the text of the experiment; set it there")
        else:
            self._refuse_unused(_NOT_OF_POSTHOC, "mode posthoc trains nothing and reads nonoverlapping windows")
        if self.betas is not None:
            self._refuse_unused(_OF_SAMPLING, "betas are given, so none is sampled")

    def _refuse_unused(self, names: Iterable[str], reason: str) -> None:
        """Raise a ValueError if one of these fields does not have its default."""
        fields = {each.name: each for each in dataclasses.fields(self)}
        for name in names:
            default, factory = fields[name].default, fields[name].default_factory
            if getattr(self, name) != (default if factory is dataclasses.MISSING else factory()):
                raise ValueError(f"{name} would have no effect: {reason}")

    @property
    def storage_url(self) -> str:
        if self.storage:
            return self.storage
        return URL.create("sqlite", database=str(Path(self.output_dir) / "study.db")).render_as_string()
