"""One training read at several budgets of steps: a trunk at a constant rate, and a cool-down from it for each budget.

The training of a budget warms up, stays at the peak rate and decays over its last part, by one minus the root of that
part (Hägele et al. 2024, arXiv:2405.18392). Up to the decay it is the same as that of all larger budgets. So the trunk
is trained once, in segments that each go on from the one before, and every budget decays from the end of its segment.
That changes no bit of a budget's result: it is that of a training with its schedule from the first step on.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from modeling_alibi_gpt.experiments.runner import train_once
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.run_folder import RECORD_FILE


TRUNKS_DIR = "trunks"
# Of ``training``, what follows from a budget.
SET_BY_BUDGETS = ("max_steps", "lr_scheduler_type", "lr_scheduler_kwargs")


def check_budgets(budgets_steps: Sequence[int], cooldown_share: float) -> None:
    """Raise a ValueError unless these are budgets and a share of each that a learning rate can decay in."""
    if list(budgets_steps) != sorted({*budgets_steps}) or min(budgets_steps, default=0) < 2:
        raise ValueError(f"budgets_steps must be ascending numbers of at least 2, got {list(budgets_steps)}")
    if not 0 < cooldown_share < 1:
        raise ValueError(f"cooldown_share must lie between 0 and 1, got {cooldown_share}")


def check_continuable(experiment: ExperimentConfig, arguments: TrainingArguments, trunk_steps: int) -> None:
    """Raise a ValueError unless the training of a budget can go on from a trunk of ``trunk_steps`` as if it were one.

    Args:
        experiment: Of the budget.
        arguments: Its arguments.
        trunk_steps: How many steps come before the cool-down.
    """
    for key, is_set in (
        ("alibi_beta_schedule", experiment.alibi_beta_schedule is not None),
        ("milestones", experiment.milestones is not None),
        ("precision auto", experiment.precision == "auto"),
        ("training.load_best_model_at_end", arguments.load_best_model_at_end),
    ):
        if is_set:
            raise ValueError(f"{key} cannot go with budgets_steps: it would not be of the trunk and the budget alike")
    if arguments.save_strategy != "steps" or arguments.logging_strategy != "steps":
        raise ValueError("budgets_steps need training.save_strategy and training.logging_strategy steps")
    if not 1 <= arguments.warmup_steps <= trunk_steps and arguments.warmup_steps:
        raise ValueError(
            f"training.warmup_steps must be whole and at most {trunk_steps}, the steps before the cool-down of the "
            f"smallest budget, got {arguments.warmup_steps}"
        )
    if trunk_steps % arguments.logging_steps:
        raise ValueError(
            f"the cool-down of a budget begins at step {trunk_steps}, which must be a multiple of "
            f"training.logging_steps ({arguments.logging_steps:g}): change budgets_steps or cooldown_share"
        )


def num_trunk_steps(budget_steps: int, cooldown_share: float) -> int:
    """How many steps of a budget come before its cool-down, whose length is rounded to whole steps, at least one."""
    return budget_steps - max(1, round(cooldown_share * budget_steps))


def of_budget(experiment: ExperimentConfig, budget_steps: int, cooldown_share: float) -> ExperimentConfig:
    """The training of a budget: ``warmup_stable_decay`` over all of its steps."""
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
    """The trunk up to the cool-down of the last budget, as trainings that each go on from the one before.

    Args:
        experiment: What is trained.
        budgets_steps: Ascending.
        cooldown_share: Of each budget.
        folder: Gets a folder for each segment.
    """
    ends = [num_trunk_steps(budget_steps, cooldown_share) for budget_steps in budgets_steps]
    # The schedule of a budget would write the rate 0 into the checkpoint of its last step; this one stays constant.
    schedule = {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": None}
    return tuple(
        _with_training(experiment, {**schedule, "max_steps": end, "output_dir": str(folder / f"{end}-steps")})
        for end in dict.fromkeys(ends)
    )


def train_from_trunk(experiment: ExperimentConfig, trunk: Sequence[ExperimentConfig]) -> dict[str, Any]:
    """Train a budget from the end of its trunk, and what is missing of the trunk before; its ``training`` record.

    A finished budget needs no trunk. Without a trunk the experiment is trained from its first step on.
    """
    start = None
    if not (Path(experiment.training["output_dir"]) / RECORD_FILE).exists():
        for segment in trunk:
            train_once(segment, start=start)
            folder = Path(segment.training["output_dir"])
            start = folder / f"{PREFIX_CHECKPOINT_DIR}-{segment.training['max_steps']}"
    return train_once(experiment, start=start)


def remove_trunks(output_dir: Path, finished: Sequence[ExperimentConfig]) -> None:
    """Remove the trunks of a comparison whose budgets are all finished, and the checkpoints of these."""
    shutil.rmtree(output_dir / TRUNKS_DIR, ignore_errors=True)
    for experiment in finished:
        for checkpoint in Path(experiment.training["output_dir"]).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)


def _with_training(experiment: ExperimentConfig, settings: dict[str, Any]) -> ExperimentConfig:
    return dataclasses.replace(experiment, training={**experiment.training, **settings})
