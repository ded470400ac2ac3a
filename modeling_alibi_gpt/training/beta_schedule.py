"""A beta of ALiBi that changes along the training, such as from steep slopes to flat ones."""

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modeling_alibi_gpt.position_alibi import AlibiPositions
from modeling_alibi_gpt.training.experiment import BetaSchedule


def set_alibi_beta(model: nn.Module, alibi_beta: float) -> None:
    """Give a model another fixed beta, in place: slopes and ``config.alibi_beta`` say the same afterwards.

    Every attention back end reads the slopes anew in each forward pass, compiled models too, without compiling again.

    Args:
        model: Any module with ALiBi in it, wrapped or not.
        alibi_beta: Finite and above 0.

    Raises:
        ValueError: The value is out of range, or the model has no ALiBi or one whose beta or slopes learn.
    """
    if not 0 < alibi_beta < math.inf:
        raise ValueError(f"alibi_beta must be a finite number above 0, got {alibi_beta}")
    for positions in _fixed_alibi(model):
        positions.config.alibi_beta = float(alibi_beta)
        with torch.no_grad():
            positions.slopes.copy_(positions.config.base_alibi_slopes())


class BetaScheduleCallback(TrainerCallback):
    """Sets beta before every optimizer step, from the number of steps done alone, so that any resume goes on exactly.

    Evaluations and checkpoints after a step have the beta of the next one, in ``config.alibi_beta`` too; after the
    last step it is ``schedule.end``. It works with any Trainer::

        Trainer(..., callbacks=[BetaScheduleCallback(BetaSchedule(start=32.0, end=1.0))])

    Raises, when the training begins, a ValueError where the model has no ALiBi or one that learns, or where
    ``load_best_model_at_end`` would put the weights of one beta beside another.
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
    """Raise a ValueError where a training under a schedule would end with the weights of an earlier beta."""
    if arguments.load_best_model_at_end:
        raise ValueError(
            "training.load_best_model_at_end cannot go with alibi_beta_schedule: the weights of one beta would get "
            "another"
        )


def _fixed_alibi(model: nn.Module) -> list[AlibiPositions]:
    found = [module for module in model.modules() if isinstance(module, AlibiPositions)]
    if not found or any(positions.trainable != "none" for positions in found):
        got = found[0].trainable if found else "another position method"
        raise ValueError(f"beta can be set where position_method is alibi and alibi_trainable none, got {got}")
    return found
