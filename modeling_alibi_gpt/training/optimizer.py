"""A learning rate of its own for what positions learn: few numbers that have far to go.

Adam moves a number by about the learning rate a step whatever its gradient, so in a whole training by no more than
the sum of the learning rates. That is far for a weight of 0.02, and near for the logarithm of a beta that would have
to go from 1 to 32, or for a bias of several nats in a table.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig

from modeling_alibi_gpt.configuration_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.position_base import PositionMethod
from modeling_alibi_gpt.position_methods import POSITION_METHODS
from modeling_alibi_gpt.training.experiment import check_position_learning_rate


def position_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What a model learns of positions: all parameters of a position method that adds a bias to attention scores.

    That is beta or slopes of ALiBi, the tables of T5 and of shared offsets, and the functions of KERPLE and FIRE. The
    vectors of ``learned`` positions are not among them: they are added to token embeddings, start at the same size,
    need to go no further than these and take weight decay as these do.
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
    """Let an optimizer train a model's ``position_parameters`` at a multiple of its learning rate.

    They move into parameter groups of their own, behind the others and without weight decay. A scheduler made later
    scales all groups alike, and checkpoints of Trainer hold them. At 1.0 the optimizer is left exactly as it is.

    With plain Trainer, before ``trainer.train()``::

        set_position_learning_rate(trainer.create_optimizer(), trainer.model, 30.0)

    Where Trainer shards the model (FSDP), override its ``create_optimizer`` instead, as ``DeterministicTrainer`` does.

    Args:
        optimizer: New: it has made no step, and no scheduler has been made for it.
        model: What it trains.
        position_learning_rate: The multiple, finite and above 0.

    Returns:
        The same optimizer.

    Raises:
        ValueError: The multiple is not valid, the optimizer is not new, or it trains no position parameter.
    """
    check_position_learning_rate(position_learning_rate)
    if position_learning_rate == 1.0:
        return optimizer
    if optimizer.state or any("initial_lr" in group for group in optimizer.param_groups):
        raise ValueError("position_learning_rate is set on a new optimizer, got one with a step or a scheduler")
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
            f"position_learning_rate {position_learning_rate:g} would change nothing: the optimizer trains no "
            "parameter of positions; leave it at 1"
        )
    for group in of_positions:
        optimizer.add_param_group(group)
    return optimizer
