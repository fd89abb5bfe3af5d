"""How every method trains: one optimizer, schedules of its learning rate, and what a training leaves."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from frontier_problems import Task

MEMBERS = 10
"""Networks of an ensemble, unless a method says otherwise."""
Schedule = Callable[[float], float]
"""The share of the learning rate at a share of the steps."""


@dataclass(frozen=True)
class Trained:
    """What a training leaves.

    Args:
        members: Maps images to logits of every network, ``(members, batch, classes)``.
        one: The one network that stands for all of them; None: the method has none.
    """

    members: Callable[[Tensor], Tensor]
    one: nn.Module | None = None


def standard(progress: float) -> float:
    """Constant for 70 % of the steps, then down to zero along a cosine."""
    return 1.0 if progress < 0.7 else 0.5 * (1 + math.cos(math.pi * (progress - 0.7) / 0.3))


def constant(progress: float) -> float:
    """The same rate all along."""
    return 1.0


def adam(parameters: Iterable[Tensor], lr: float, weight_decay: float) -> torch.optim.AdamW:
    """The optimizer of every method."""
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=True)


def descend(
    task: Task,
    steps: int,
    parameters: Iterable[Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    lr: float,
    weight_decay: float,
    schedule: Schedule = standard,
    after: Callable[[int], None] | None = None,
) -> None:
    """Minimise a loss of images and labels for so many steps.

    Args:
        task: Whose batches are seen.
        steps: How many of them.
        parameters: What is trained.
        loss: Maps images and labels of a batch to a scalar.
        lr: The rate that the schedule takes shares of.
        weight_decay: Of the optimizer.
        schedule: Of the rate.
        after: Called with the number of steps taken, after each.
    """
    optimizer = adam(parameters, lr, weight_decay)
    for step, (images, labels) in enumerate(task.batches(steps)):
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step / steps)
        optimizer.zero_grad()
        loss(images, labels).backward()
        optimizer.step()
        if after is not None:
            after(step + 1)


def fit(module: nn.Module, task: Task, steps: int, lr: float, weight_decay: float, **options: Any) -> nn.Module:
    """One network by the cross-entropy, as it is in evaluation; options are those of `descend`."""

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(module(images), labels)

    descend(task, steps, module.parameters(), loss, lr, weight_decay, **options)
    return module.eval()


def renormed(module: nn.Module, task: Task) -> nn.Module:
    """The network with norm statistics of its own weights, as it is in evaluation."""
    if any(isinstance(one, _BatchNorm) for one in module.modules()):
        update_bn(task.calm(), module)
    return module.eval()


def together(networks: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    """The logits of all networks."""
    return lambda images: torch.stack([network(images) for network in networks])
