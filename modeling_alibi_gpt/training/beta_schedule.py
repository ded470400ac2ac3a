"""Change ALiBi's beta during training, for example from steep slopes to flat ones."""

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modeling_alibi_gpt.position_alibi import AlibiPositions, slope_fields
from modeling_alibi_gpt.training.experiment import BetaSchedule


def set_alibi_beta(model: nn.Module, alibi_beta: float) -> None:
    """Set a fixed beta in place, in the slopes and in ``config.alibi_beta``.

    Every attention back end reads the slopes in each forward pass; compiled models need no recompilation.

    Args:
        model: Any module that contains ALiBi, wrapped or not.
        alibi_beta: Finite and above 0.

    Raises:
        ValueError: The value is out of range, or the model has no ALiBi or learns its beta or slopes.
    """
    if not 0 < alibi_beta < math.inf:
        raise ValueError(f"alibi_beta must be a finite number above 0, got {alibi_beta}")
    for positions in _fixed_alibi(model):
        positions.config.alibi_beta = float(alibi_beta)
        with torch.no_grad():
            positions.slopes.copy_(positions.config.base_alibi_slopes())
        positions.made_from = slope_fields(positions.config)


class BetaScheduleCallback(TrainerCallback):
    """Sets beta before every optimizer step, from the step number alone, so that a resumed run continues exactly.

    Evaluations and checkpoints after a step use the beta of the next step, also in ``config.alibi_beta``; after the
    last step it is ``schedule.end``. Works with any Trainer::

        Trainer(..., callbacks=[BetaScheduleCallback(BetaSchedule(start=32.0, end=1.0))])

    At the start of training, raises a ValueError if the model has no ALiBi or learns its beta or slopes, or if
    ``load_best_model_at_end`` would combine the weights of one beta with another beta.
    """

    def __init__(self, schedule: BetaSchedule) -> None:
        self.schedule = schedule

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        refuse_best_model(args)
        self._set(state, kwargs["model"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._set(state, kwargs["model"])

    def _set(self, state: TrainerState, model: nn.Module) -> None:
        set_alibi_beta(model, self.schedule.beta_at(state.global_step, state.max_steps))


def refuse_best_model(arguments: TrainingArguments) -> None:
    """Raise a ValueError if training with a schedule would end with the weights of an earlier beta."""
    if arguments.load_best_model_at_end:
        raise ValueError(
            "training.load_best_model_at_end cannot be used with alibi_beta_schedule: the best weights may belong to "
            "another beta than the final one"
        )


def _fixed_alibi(model: nn.Module) -> list[AlibiPositions]:
    found = [module for module in model.modules() if isinstance(module, AlibiPositions)]
    if not found or any(positions.trainable != "none" for positions in found):
        got = found[0].trainable if found else "another position method"
        raise ValueError(f"setting beta needs position_method alibi and alibi_trainable none, got {got}")
    return found
