"""Methods of the frontier: each maps a task and a setting to networks, and sees no more images than the task allows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from frontier_ours import OURS, hypernetwork, variational
from frontier_problems import Task
from frontier_shared import batch_ensemble, dropout, late_phase, simplex
from frontier_training import Trained, fit, together
from frontier_walks import averaging, gaussian, geometric, snapshots

Setting = Mapping[str, Any]


USUAL: tuple[Setting, ...] = (
    {"lr": 0.33, "weight_decay": 0.05},
    {"lr": 1.0, "weight_decay": 0.05},
    {"lr": 1.0, "weight_decay": 0.5},
    {"lr": 2.0, "weight_decay": 0.05},
)
"""What is tried, unless a method has a number of its own that matters more than the weight decay."""

SMALL: tuple[Setting, ...] = tuple({"lr": lr, "weight_decay": 0.0} for lr in (0.01, 0.033, 0.1, 0.33))
"""What is tried where all weights are generated, which takes a lower rate."""


@dataclass(frozen=True)
class Method:
    """A way to networks.

    Args:
        train: Maps a task and a setting, by keywords, to what the training leaves.
        settings: What is tried, four at most, with ``lr`` in units of the problem's.
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


def settings(name: str, *values: Any) -> tuple[Setting, ...]:
    """Two rates by two values of a number that matters more than the weight decay."""
    return tuple({"lr": lr, name: value} for lr in (0.33, 1.0) for value in values)


METHODS: dict[str, Method] = {
    "network": Method(network, budgets=(1, 3, 10)),
    **{f"independent-{k}": Method(partial(independent, networks=k), budgets=(1, k)) for k in (2, 3, 5, 10)},
    "snapshots": Method(snapshots, settings("count", 3, 6)),
    "fge": Method(geometric),
    "swa": Method(averaging),
    "swag": Method(gaussian),
    "dropout": Method(dropout, settings("rate", 0.05, 0.2)),
    "batchensemble": Method(batch_ensemble, settings("members", 4, 10)),
    "late_phase": Method(late_phase),
    "simplex": Method(simplex, settings("corners", 2, 3)),
    **{
        name: Method(partial(variational, distribution=name), settings("kl", 0.1, 1.0), in_trainer=True)
        for name in ("mean_field", "mnf")
    },
    **{
        name: Method(partial(hypernetwork, **options), SMALL if name == "ours_reproduce" else USUAL, in_trainer=True)
        for name, options in OURS.items()
    },
}
