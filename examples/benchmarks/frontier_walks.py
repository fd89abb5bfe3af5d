"""Walks: methods whose networks are points along one training."""

import copy
import math
import sys
from pathlib import Path

from torch import nn
from torch.optim.swa_utils import AveragedModel

sys.path.append(str(Path(__file__).parents[1] / "baselines"))
from frontier_problems import Task
from frontier_training import MEMBERS, Schedule, Trained, constant, fit, renormed, together
from swag import SWAG

BEFORE = 0.6
"""Share of the steps before the first network is kept."""
VISITS = 40
"""Networks that an average is made of."""


def cycles(count: int) -> Schedule:
    """So many cosines from the whole rate to zero."""
    return lambda progress: 0.5 * (1 + math.cos(math.pi * (progress * count % 1)))


def snapshots(task: Task, lr: float, count: int, weight_decay: float = 0.05) -> Trained:
    """Snapshots: cosines from the whole rate to zero, one network at the end of each.

    References:
        | Snapshot Ensembles: Train 1, get M for free (Huang et al., 2017)
        | https://arxiv.org/abs/1704.00109
    """
    module, kept, length = task.network(), [], max(1, task.steps // count)

    def keep(step: int) -> None:
        if step % length == 0:
            kept.append(copy.deepcopy(module).eval())

    steps = length * min(count, task.steps)
    fit(module, task, steps, lr, weight_decay, schedule=cycles(min(count, task.steps)), after=keep)
    return Trained(together(kept), kept[-1])


def geometric(task: Task, lr: float, weight_decay: float, low: float = 0.05) -> Trained:
    """Fast geometric ensembling: after a part at the whole rate short cycles down and up, one network at the bottom of each.

    References:
        | Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs (Garipov et al., 2018)
        | https://arxiv.org/abs/1802.10026
    """
    module, kept = task.network(), []
    length = max(1, round((1 - BEFORE) * task.steps / MEMBERS))
    first = max(0, task.steps - length * MEMBERS)

    def schedule(progress: float) -> float:
        done = round(progress * task.steps) - first
        return 1.0 if done < 0 else low + (1 - low) * abs(1 - 2 * (done % length) / length)

    def keep(step: int) -> None:
        if step > first and (step - first - 1) % length == length // 2:
            kept.append(copy.deepcopy(module).eval())

    fit(module, task, task.steps, lr, weight_decay, schedule=schedule, after=keep)
    mean = AveragedModel(kept[0])
    for network in kept:
        mean.update_parameters(network)
    return Trained(together(kept), renormed(mean.module, task))


def visits(task: Task) -> tuple[int, int]:
    """After how many steps weights are collected, and how many lie between two collections."""
    last = max(2, round((1 - BEFORE) * task.steps))
    return task.steps - last, max(1, last // VISITS)


def averaging(task: Task, lr: float, weight_decay: float) -> Trained:
    """Stochastic weight averaging: a constant rate, and the mean of the weights that it passes through in the last part.

    References:
        | Averaging Weights Leads to Wider Optima and Better Generalization (Izmailov et al., 2018)
        | https://arxiv.org/abs/1803.05407
    """
    module = task.network()
    mean, (first, every) = AveragedModel(module), visits(task)

    def collect(step: int) -> None:
        if step > first and (step - first) % every == 0:
            mean.update_parameters(module)

    fit(module, task, task.steps, lr, weight_decay, schedule=constant, after=collect)
    one = renormed(mean.module, task)
    return Trained(together([one]), one)


def gaussian(task: Task, lr: float, weight_decay: float) -> Trained:
    """SWAG: draws from a Gaussian around that mean (see `SWAG`)."""
    module = task.network()
    collected, (first, every) = SWAG(module), visits(task)

    def collect(step: int) -> None:
        if step > first and (step - first) % every == 0:
            collected.collect()

    fit(module, task, task.steps, lr, weight_decay, schedule=constant, after=collect)
    drawn: list[nn.Module] = []
    for _ in range(MEMBERS):
        collected.draw()
        drawn.append(renormed(copy.deepcopy(module), task))
    return Trained(together(drawn), renormed(collected.averaged.module, task))
