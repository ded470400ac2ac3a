"""Train several step budgets at the cost of one: a trunk at a constant learning rate, and one cool-down per budget.

The training of a budget warms up, stays at the peak rate and decays over its last part, by one minus the square root
of the progress of the decay (Hägele et al. 2024, arXiv:2405.18392). Up to the decay it is identical to the training of
all larger budgets. The trunk is therefore trained once, in segments that each resume from the previous one, and every
budget decays from the end of its segment. The result is bit-identical to training a budget separately.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from modeling_alibi_gpt.experiments.runner import is_trained, train_once
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.resumable import remove_checkpoints


TRUNKS_DIR = "trunks"
# Fields of ``training`` that follow from a budget.
SET_BY_BUDGETS = ("max_steps", "lr_scheduler_type", "lr_scheduler_kwargs")


def check_budgets(budgets_steps: Sequence[int], cooldown_share: float) -> None:
    """Raise a ValueError unless the budgets are ascending and the share leaves room for trunk and cool-down."""
    if list(budgets_steps) != sorted({*budgets_steps}) or min(budgets_steps, default=0) < 2:
        raise ValueError(f"budgets_steps must be ascending numbers of at least 2, got {list(budgets_steps)}")
    if not 0 < cooldown_share < 1:
        raise ValueError(f"cooldown_share must be above 0 and below 1, got {cooldown_share}")


def check_continuable(experiment: ExperimentConfig, arguments: TrainingArguments, trunk_steps: int) -> None:
    """Raise a ValueError unless a budget can resume from a trunk with the same result as separate training.

    Args:
        experiment: Experiment of the budget.
        arguments: Its arguments.
        trunk_steps: Number of steps before the cool-down.
    """
    for key, is_set in (
        ("alibi_beta_schedule", experiment.alibi_beta_schedule is not None),
        ("early_stopping", experiment.early_stopping is not None),
        ("milestones", experiment.milestones is not None),
        ("training.load_best_model_at_end", arguments.load_best_model_at_end),
    ):
        if is_set:
            raise ValueError(f"{key} cannot be used with budgets_steps: it could differ between trunk and budget")
    if arguments.save_strategy != "steps" or arguments.logging_strategy != "steps":
        raise ValueError("budgets_steps need training.save_strategy and training.logging_strategy steps")
    if not 1 <= arguments.warmup_steps <= trunk_steps and arguments.warmup_steps:
        raise ValueError(
            f"training.warmup_steps must be an integer of at most {trunk_steps}, the number of steps before the "
            f"cool-down of the smallest budget, got {arguments.warmup_steps}"
        )
    if trunk_steps % arguments.logging_steps:
        raise ValueError(
            f"the cool-down of a budget begins at step {trunk_steps}, which must be a multiple of "
            f"training.logging_steps ({arguments.logging_steps:g}): change budgets_steps or cooldown_share"
        )


def num_trunk_steps(budget_steps: int, cooldown_share: float) -> int:
    """Number of steps of a budget before its cool-down, which is rounded to whole steps and has at least one."""
    return budget_steps - max(1, round(cooldown_share * budget_steps))


def of_budget(experiment: ExperimentConfig, budget_steps: int, cooldown_share: float) -> ExperimentConfig:
    """The training of a budget, with a ``warmup_stable_decay`` schedule over all of its steps."""
    num_decay_steps = budget_steps - num_trunk_steps(budget_steps, cooldown_share)
    schedule = {
        "max_steps": budget_steps,
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": num_decay_steps, "decay_type": "1-sqrt"},
    }
    return _with_training(experiment, schedule)


def trunk_segments(
    experiment: ExperimentConfig, budgets_steps: Sequence[int], cooldown_share: float, folder: Path
) -> tuple[ExperimentConfig, ...]:
    """The trunk up to the cool-down of the last budget, as trainings that each resume from the previous one.

    Args:
        experiment: The experiment.
        budgets_steps: Budgets in steps, ascending.
        cooldown_share: Share of each budget in its cool-down.
        folder: Parent folder of the segments.
    """
    ends = [num_trunk_steps(budget_steps, cooldown_share) for budget_steps in budgets_steps]
    # A budget's schedule would store a learning rate of 0 in the checkpoint of its last step; this one is constant.
    schedule = {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": None}
    return tuple(
        _with_training(experiment, {**schedule, "max_steps": end, "output_dir": str(folder / f"{end}-steps")})
        for end in dict.fromkeys(ends)
    )


def train_from_trunk(experiment: ExperimentConfig, trunk: Sequence[ExperimentConfig]) -> dict[str, Any]:
    """Train the missing part of a trunk and then a budget from its end, and return the ``training`` record.

    A finished budget needs no trunk. Without a trunk, the experiment is trained from its first step.
    """
    start = None
    if not is_trained(experiment):
        for segment in trunk:
            train_once(segment, start=start)
            folder = Path(segment.training["output_dir"])
            start = folder / f"{PREFIX_CHECKPOINT_DIR}-{segment.training['max_steps']}"
    return train_once(experiment, start=start)


def remove_trunks(output_dir: Path, finished: Sequence[ExperimentConfig]) -> None:
    """Delete the trunks of a comparison whose budgets are all finished, and the checkpoints of the budgets."""
    shutil.rmtree(output_dir / TRUNKS_DIR, ignore_errors=True)
    for experiment in finished:
        remove_checkpoints(Path(experiment.training["output_dir"]))


def _with_training(experiment: ExperimentConfig, settings: dict[str, Any]) -> ExperimentConfig:
    return dataclasses.replace(experiment, training={**experiment.training, **settings})
