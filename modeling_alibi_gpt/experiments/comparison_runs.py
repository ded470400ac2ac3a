"""The runs of a comparison: for each variant, seed and budget, a training and the evaluations of its model."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from modeling_alibi_gpt.checkpoints.model_size import weight_shapes
from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.data.tasks import is_task
from modeling_alibi_gpt.evaluation.extrapolation import ExtrapolationConfig
from modeling_alibi_gpt.evaluation.recall import RecallConfig
from modeling_alibi_gpt.experiments.budgets import (
    SET_BY_BUDGETS,
    TRUNKS_DIR,
    check_continuable,
    of_budget,
    trunk_segments,
)
from modeling_alibi_gpt.experiments.comparison_config import ComparisonConfig
from modeling_alibi_gpt.position_alibi import check_not_in_weights
from modeling_alibi_gpt.position_methods import POSITION_METHODS
from modeling_alibi_gpt.runtime.config import build_config, convert_value
from modeling_alibi_gpt.runtime.record_types import AS_TRAINED
from modeling_alibi_gpt.runtime.run_names import run_folder_name
from modeling_alibi_gpt.runtime.variants import BETA_SCHEDULE, POSITION_RATE, TRAINING_PREFIX, is_setting
from modeling_alibi_gpt.training.experiment import BetaSchedule, ExperimentConfig, ModelSection
from modeling_alibi_gpt.training.model_setup import laid_over, model_config
from modeling_alibi_gpt.training.preflight import check_back_end, check_experiment


ROWS_FILE = "extrapolation.jsonl"
_OF_RUN = {"output_dir", "seed"}
# Fields that determine the bias of ALiBi.
_OF_BIAS = [
    "alibi_beta",
    "alibi_slope_kind",
    "alibi_slopes",
    "alibi_bias_max",
    "alibi_bias_inside_scaling",
    "alibi_trainable",
    "alibi_scaling",
]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One variant with one seed: a training, and the evaluations of its model.

    Attributes:
        variant: Name of the variant.
        fields: Everything that the variant sets, for the model and its training, and what it inherits from the
            experiment that makes it differ from the paper's ALiBi.
        seed: Training seed.
        output_dir: Folder for evaluations, and for the training unless trainings are shared.
        experiment: The training.
        evaluations: Evaluations of the model, ``as trained`` and with each of its inference overrides.
        budget_steps: Training budget in steps, if there are several.
        budget_tokens: The same in tokens.
        trunk: The trainings that it resumes from, each of which resumes from the previous one.
    """

    variant: str
    fields: dict[str, Any]
    seed: int
    output_dir: Path
    experiment: ExperimentConfig
    evaluations: dict[str, ExtrapolationConfig] | dict[str, RecallConfig]
    budget_steps: int | None = None
    budget_tokens: int | None = None
    trunk: tuple[ExperimentConfig, ...] = ()

    @property
    def model_dir(self) -> Path:
        return Path(self.experiment.training["output_dir"])


def make_run(
    config: ComparisonConfig, base: ExperimentConfig, variant: str, seed: int, budget_steps: int | None
) -> Run:
    if base.precision == "auto":
        raise ValueError("a comparison needs one precision for all its trainings: float32 or bfloat16, not auto")
    fields = config.variants[variant] or {}
    folder = Path(config.output_dir, "" if budget_steps is None else f"{budget_steps}-steps")
    folder /= run_folder_name(variant, seed)
    base = _with_settings(base, variant, fields)
    training = {**base.training, "seed": seed, "output_dir": str(folder)}
    model = _with_fields(base.model, {key: value for key, value in fields.items() if not is_setting(key)})
    readings = {AS_TRAINED: {}, **(config.inference_overrides.get(variant) or {})}
    readings = {name: overrides or {} for name, overrides in readings.items()}
    trained = model_config(model)
    evaluation_class = RecallConfig if is_task(base.data.source) else ExtrapolationConfig
    for name, overrides in readings.items():
        read, where = model_config(_with_fields(model, overrides)), f"inference_overrides.{variant}.{name}"
        if not isinstance(read, AlibiGPTConfig):
            continue
        if weight_shapes(read) != weight_shapes(trained):
            raise ValueError(
                f"{where} needs other weights than the trained ones, got {overrides}: leave out fields that change "
                "weights"
            )
        check_not_in_weights(overrides, trained.alibi_trainable, f"{where}.")
        check_back_end(config.evaluation.get("attn_implementation"), "evaluation.")
    evaluations = {
        name: {"models": [str(folder)], "names": [name], "overrides": overrides, "output": str(folder / ROWS_FILE)}
        for name, overrides in readings.items()
    }
    run = Run(
        variant=variant,
        fields={**_inherited(base, trained), **fields},
        seed=seed,
        output_dir=folder,
        experiment=dataclasses.replace(base, name=variant, model=model, training=training),
        evaluations={
            name: build_config(evaluation_class, {**config.evaluation, **named}, "evaluation.")
            for name, named in evaluations.items()
        },
    )
    if budget_steps is None:
        check_experiment(run.experiment)
        return run
    return _of_budget(config, run, budget_steps)


def _inherited(base: ExperimentConfig, trained: PreTrainedConfig) -> dict[str, Any]:
    """What makes a training of the experiment differ from the paper's ALiBi at the base learning rate."""
    inherited: dict[str, Any] = {}
    if isinstance(trained, AlibiGPTConfig) and POSITION_METHODS[trained.position_method].reads_alibi_fields:
        paper = AlibiGPTConfig()
        inherited = {
            name: getattr(trained, name) for name in _OF_BIAS if getattr(trained, name) != getattr(paper, name)
        }
    if base.alibi_beta_schedule is not None:
        inherited[BETA_SCHEDULE] = dataclasses.asdict(base.alibi_beta_schedule)
    if base.position_learning_rate != 1.0:
        inherited[POSITION_RATE] = base.position_learning_rate
    return inherited


def _of_budget(config: ComparisonConfig, run: Run, budget_steps: int) -> Run:
    """A checked run for one budget, with the trunk that it shares with larger budgets."""
    for key in SET_BY_BUDGETS:
        if TRAINING_PREFIX + key in run.fields:
            raise ValueError(f"variants.{run.variant}: training.{key} cannot be set: it follows from budgets_steps")
    assert config.budgets_steps is not None
    smaller = [steps for steps in config.budgets_steps if steps <= budget_steps]
    folder = Path(config.output_dir, TRUNKS_DIR, run_folder_name(run.variant, run.seed))
    experiment = of_budget(run.experiment, budget_steps, config.cooldown_share)
    arguments = check_experiment(experiment)
    trunk = trunk_segments(run.experiment, smaller, config.cooldown_share, folder)
    check_continuable(experiment, arguments, trunk[-1].training["max_steps"])
    tokens_per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps
    tokens_per_step *= experiment.data.train_length_tokens
    return dataclasses.replace(
        run,
        experiment=experiment,
        budget_steps=budget_steps,
        budget_tokens=budget_steps * tokens_per_step,
        trunk=trunk,
    )


def _with_settings(base: ExperimentConfig, variant: str, fields: dict[str, Any]) -> ExperimentConfig:
    training = {
        key.removeprefix(TRAINING_PREFIX): value for key, value in fields.items() if key.startswith(TRAINING_PREFIX)
    }
    for key in _OF_RUN & training.keys():
        raise ValueError(f"variants.{variant}: training.{key} cannot be set: it follows from seeds and output_dir")
    rate = fields.get(POSITION_RATE, base.position_learning_rate)
    rate = convert_value(rate, float, f"variants.{variant}.{POSITION_RATE}")
    schedule = base.alibi_beta_schedule if fields.get("position_method", "alibi") == "alibi" else None
    if fields.get(BETA_SCHEDULE) is not None:
        where = f"variants.{variant}.{BETA_SCHEDULE}"
        mapping = convert_value(fields[BETA_SCHEDULE], dict[str, Any], where)
        schedule = build_config(BetaSchedule, mapping, f"{where}.")
    elif BETA_SCHEDULE in fields:
        schedule = None
    changes: dict[str, Any] = {"position_learning_rate": rate, "alibi_beta_schedule": schedule}
    return dataclasses.replace(base, training={**base.training, **training}, **changes)


def _with_fields(section: ModelSection, fields: dict[str, Any]) -> ModelSection:
    return dataclasses.replace(section, overrides=laid_over(section.overrides, fields))
