"""What a sweep of beta is told: its mode, its grid or range, its seeds and where everything goes."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from modeling_alibi_gpt.evaluation.measurement import MeasurementConfig


LEARNABLE = ("beta", "slopes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(MeasurementConfig):
    """What ``scripts/sweep_beta.py`` tunes.

    The text settings above are those of ``posthoc``; ``retrain`` reads its experiment's own.

    Attributes:
        mode: ``retrain`` (a training for each beta and seed) or ``posthoc`` (one checkpoint, evaluated at each beta).
        output_dir: Where trials, best configuration, best model and the default study go.
        experiment: For ``retrain``: path of an experiment, or the mapping itself.
        experiment_overrides: For ``retrain``: ``a.b=value`` assignments laid over the experiment.
        checkpoint: For ``posthoc``: folder of the model.
        length_tokens: For ``posthoc``: window length; null is the training length.
        betas: A grid; null samples ``num_trials`` values between ``beta_low`` and ``beta_high`` by log-uniform TPE.
        beta_low: Smallest sampled beta.
        beta_high: Largest sampled beta.
        num_trials: Sampled betas.
        sampler_seed: Of TPE.
        seeds: For ``retrain``: training seeds, the same for every beta, so that betas are compared in pairs.
        pruning: For ``retrain``: stop a training whose first seed is above the median of the others at one of its
            evaluations.
        trained: For ``retrain``: what is learned for comparison, each with every seed: ``beta``, ``slopes``.
        study_name: Name of the study in the storage; what is learned has a study of its own, ``NAME-trained``.
        trainings_dir: For ``retrain``: folder of trainings, each named by its content, that sweeps and comparisons
            share: what one of them has trained, with the same settings, text and seed, the others find. Null keeps the
            trainings of this sweep in ``output_dir``, for itself.
        storage: Optuna storage URL that workers share; null is an SQLite file in ``output_dir``.
    """

    mode: str = "retrain"
    output_dir: str
    experiment: str | dict[str, Any] | None = None
    experiment_overrides: list[str] = dataclasses.field(default_factory=list)
    checkpoint: str | None = None
    length_tokens: int | None = None
    betas: list[float] | None = None
    beta_low: float = 0.125
    beta_high: float = 8.0
    num_trials: int = 16
    sampler_seed: int = 0
    seeds: list[int] = dataclasses.field(default_factory=lambda: [0])
    pruning: bool = False
    trained: list[str] = dataclasses.field(default_factory=lambda: ["beta"])
    study_name: str = "beta"
    trainings_dir: str | None = None
    storage: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        inputs = {"retrain": ("experiment", "checkpoint"), "posthoc": ("checkpoint", "experiment")}
        if self.mode not in inputs:
            raise ValueError(f"mode must be retrain or posthoc, got {self.mode!r}")
        needed, unused = inputs[self.mode]
        if getattr(self, needed) is None or getattr(self, unused) is not None:
            raise ValueError(f"mode {self.mode} needs '{needed}' and takes no '{unused}'")
        if self.mode == "posthoc" and self.pruning:
            raise ValueError("pruning stops trainings, and mode posthoc has none: leave it false")
        for beta in [*(self.betas or []), self.beta_low, self.beta_high]:
            if not (math.isfinite(beta) and beta > 0):
                raise ValueError(f"every beta must be a finite number above 0, got {beta}")
        if self.betas == [] or self.beta_low >= self.beta_high:
            raise ValueError("give at least one beta in 'betas', or beta_low below beta_high")
        if self.num_trials < 1:
            raise ValueError(f"num_trials must be at least 1, got {self.num_trials}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different numbers, at least one, got {self.seeds}")
        if unknown := set(self.trained) - set(LEARNABLE):
            raise ValueError(f"trained takes beta and slopes, got {', '.join(sorted(unknown))}")

    @property
    def storage_url(self) -> str:
        return self.storage or f"sqlite:///{Path(self.output_dir) / 'study.db'}"
