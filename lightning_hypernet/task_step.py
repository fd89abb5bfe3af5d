"""Task steps: what goes around the steps of a LightningModule when a batch holds tasks, each with a network of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.training_step import dealt_step

Support = Callable[[Any], Any]
"""Gives the data set of a task that its network is made from."""


def check_tasks(encoder: Any, support: Any, deal: Any, others: Mapping[str, Any]) -> Support | None:
    """See that an encoder goes with the other options of a callback, and give back `support`.

    Args:
        encoder: The option.
        support: That beside it.
        deal: How batches are dealt out.
        others: Options that say how networks are drawn, and take two passes, by name: what was given of them.

    Raises:
        TypeError: If `support` is no function.
        ValueError: If it does not.
    """
    if support is not None and not callable(support):
        raise TypeError(f"support must be a function of a task, which gives its data set, not {support!r}")
    if encoder is None:
        if support is not None:
            raise ValueError("support gives data sets to an encoder: pass encoder=, or leave it out")
        return None
    if deal != "batch":
        raise ValueError(f"an encoder gives each network its own task: set deal='batch', not {deal!r}")
    if given := [name for name, value in others.items() if value]:
        raise ValueError(f"an encoder takes the prior's place: leave out {', '.join(given)}")
    given_by: Support | None = support
    return given_by


def tasks_of(batch: Any) -> list[Any]:
    """The tasks of a batch.

    They are the entries of a tuple, as ``collate_fn=tuple`` makes them, of any sizes; or those along the first
    axis of all tensors, as loaders stack them.

    Raises:
        ValueError: If tensors are of different lengths, or there is no task.
    """
    if type(batch) is tuple:
        tasks = list(batch)
    else:
        lengths = {len(leaf) if leaf.ndim else 0 for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)}
        if len(lengths) != 1:
            raise ValueError(
                f"a batch of tasks holds tensors whose first axis tells the tasks apart, not of lengths {sorted(lengths)}; of "
                "tasks of different sizes pass the loader collate_fn=tuple"
            )
        parts = range(lengths.pop())
        tasks = [tree_map(lambda leaf, i=index: leaf[i] if isinstance(leaf, Tensor) else leaf, batch) for index in parts]
    if not tasks:
        raise ValueError("the batch holds no task")
    return tasks


def support_of(task: Any) -> Any:
    """The data set of a task: under ``"support"``, the first of two parts that are data sets themselves, or the task itself."""
    if isinstance(task, Mapping):
        if "support" not in task:
            raise ValueError(f"a task has its data set under 'support', not {', '.join(map(str, task))}: pass support=")
        return task["support"]
    pair = isinstance(task, (tuple, list)) and len(task) == 2
    return task[0] if pair and all(isinstance(part, (tuple, list)) for part in task) else task


def tasks_step(
    hypernet: Hypernet,
    pl_module: pl.LightningModule,
    step: Callable[..., Any],
    support: Support | None,
    batch: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run a step once for every task of a batch, with the network that the encoder makes of its data set.

    Args:
        hypernet: The Hypernet.
        pl_module: The LightningModule, whose logged values are averaged over tasks, and logged once.
        step: The step, which is given one task at a time.
        support: Gives the data set of a task; None: `support_of`.
        batch: The tasks.
        args: Its further arguments.
        kwargs: Its keyword arguments.

    Returns:
        What it returns, averaged over tasks, as `dealt_step` does.
    """
    tasks = tasks_of(batch)
    with torch.inference_mode(False), torch.set_grad_enabled(hypernet.training):
        encoded = hypernet.encode_tasks(*map(support or support_of, tasks), sample=hypernet.training)
    with hypernet.step(latents=encoded):
        if hypernet.training:
            hypernet.training_population()
        return dealt_step(hypernet, pl_module, step, lambda *_: tasks, None, batch, *args, **kwargs)
