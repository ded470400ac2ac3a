"""A separate learning rate for position parameters, which are few and have to move far.

Adam moves a parameter by about the learning rate per step, whatever its gradient, so over a training by at most the
sum of the learning rates. That is a lot for a weight of 0.02, but little for the logarithm of a beta that has to move
from 1 to 32, or for a table entry of several nats.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedConfig

from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.position_base import PositionMethod
from modeling_alibi_gpt.position_methods import POSITION_METHODS


def position_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of all position methods that add a bias to attention scores.

    These are beta or slopes of ALiBi, the tables of T5 and shared offsets, and the functions of KERPLE and FIRE. The
    vectors of ``learned`` positions are not included: they are added to token embeddings, and start at the same scale,
    move as far and use weight decay like those.
    """
    methods = (module for module in model.modules() if isinstance(module, PositionMethod) and module.has_bias)
    return [parameter for method in methods for parameter in method.parameters()]


def learns_positions(config: PreTrainedConfig) -> bool:
    """Whether a model of this config has ``position_parameters``."""
    if not isinstance(config, AlibiGPTConfig):
        return False
    method = POSITION_METHODS[config.position_method]
    return method.has_bias and bool(method.parameter_shapes(config))


def set_position_learning_rate(
    optimizer: torch.optim.Optimizer, model: nn.Module, position_learning_rate: float
) -> torch.optim.Optimizer:
    """Train a model's ``position_parameters`` at a multiple of the learning rate of an optimizer.

    The parameters move into separate groups after the others, without weight decay. A scheduler created later scales
    all groups alike, and Trainer's checkpoints include them. At 1.0 the optimizer is unchanged.

    With plain Trainer, before ``trainer.train()``::

        set_position_learning_rate(trainer.create_optimizer(), trainer.model, 30.0)

    If Trainer shards the model (FSDP), override its ``create_optimizer`` instead, as ``DeterministicTrainer`` does.

    Args:
        optimizer: A new optimizer, which has made no step and has no scheduler.
        model: The model that it trains.
        position_learning_rate: The multiple, finite and above 0.

    Returns:
        The same optimizer.

    Raises:
        ValueError: The multiple is invalid, the optimizer is not new, or it trains no position parameters.
    """
    if not 0 < position_learning_rate < math.inf:
        raise ValueError(f"position_learning_rate must be a finite number above 0, got {position_learning_rate}")
    if position_learning_rate == 1.0:
        return optimizer
    # Adagrad makes its state at step 0 before it begins.
    has_begun = any(float(state.get("step", 1)) > 0 for state in optimizer.state.values())
    if has_begun or any("initial_lr" in group for group in optimizer.param_groups):
        raise ValueError("position_learning_rate needs a new optimizer, got one with a step or a scheduler")
    wanted = {id(parameter) for parameter in position_parameters(model)}
    of_positions = []
    for group in optimizer.param_groups:
        taken = [parameter for parameter in group["params"] if id(parameter) in wanted]
        if taken:
            rate = group["lr"] * position_learning_rate
            of_positions.append({**group, "params": taken, "lr": rate, "weight_decay": 0.0})
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in wanted]
    if not of_positions:
        raise ValueError(
            f"position_learning_rate {position_learning_rate:g} would have no effect: the optimizer trains no "
            "position parameters; leave it at 1"
        )
    for group in of_positions:
        optimizer.add_param_group(group)
    return optimizer
