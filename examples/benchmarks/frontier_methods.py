"""Methods of the frontier: each maps a task and a setting to networks, and sees no more images than the task allows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from frontier_ours import OURS, hypernetwork
from frontier_problems import Task
from frontier_training import Trained, fit, together

Setting = Mapping[str, Any]


USUAL: tuple[Setting, ...] = (
    {"lr": 3e-3, "weight_decay": 0.05},
    {"lr": 1e-2, "weight_decay": 0.05},
    {"lr": 1e-2, "weight_decay": 1.0},
    {"lr": 3e-2, "weight_decay": 0.05},
)
"""What is tried, unless a method has a number of its own that matters more than the weight decay."""


@dataclass(frozen=True)
class Method:
    """A way to networks.

    Args:
        train: Maps a task and a setting, by keywords, to what the training leaves.
        settings: What is tried, four at most.
        budgets: What it is run at, in images of one network's training.
        in_trainer: Whether Lightning's trainer runs it, which one network is timed in then too.
    """

    train: Callable[..., Trained]
    settings: tuple[Setting, ...] = USUAL
    budgets: tuple[float, ...] = (1, 3)
    in_trainer: bool = False


def network(task: Task, lr: float, weight_decay: float) -> Trained:
    """One network."""
    module = fit(task.network(), task, task.steps, lr, weight_decay)
    return Trained(together([module]), module)


def independent(task: Task, lr: float, weight_decay: float, networks: int) -> Trained:
    """Networks that know nothing of each other, each with an equal part of the images."""
    steps = task.steps // networks
    return Trained(together([fit(task.network(), task, steps, lr, weight_decay) for _ in range(networks)]))


METHODS: dict[str, Method] = {
    "network": Method(network, budgets=(1, 3, 10)),
    **{f"independent-{k}": Method(partial(independent, networks=k), budgets=(1, k)) for k in (2, 3, 5, 10)},
    **{name: Method(partial(hypernetwork, **options), budgets=(1, 3), in_trainer=True) for name, options in OURS.items()},
}
