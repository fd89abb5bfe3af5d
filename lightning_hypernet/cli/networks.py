"""Networks: those of a Hypernet that a command asks for, as an ensemble."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_hypernet.cli.problems import CommandError
from lightning_hypernet.cli.progress import track
from lightning_hypernet.cli.sources import Source
from lightning_hypernet.ensemble import Ensemble
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.values import whole


def networks_of(
    hypernet: Hypernet,
    source: Source,
    count: int | None = None,
    seed: int | None = None,
    component: int | None = None,
    context: Sequence[float] | None = None,
) -> Ensemble:
    """The members of evaluation, or networks drawn anew, with norm statistics of their own.

    Args:
        hypernet: What they are drawn from.
        source: Gives the training data from which norm statistics are estimated.
        count: How many are drawn; None: the members of evaluation.
        seed: What they are drawn with; None: the next draw of the checkpoint.
        component: Draw from this component of the prior alone.
        context: The condition of all.

    Raises:
        CommandError: If new networks need norm statistics and there is no training data.
    """
    if count is None:
        return hypernet.ensemble(hypernet.member_population())
    if seed is not None:
        hypernet.prior.seed, hypernet.prior.draws = whole("--seed", seed, 0), 0
    loader = source.any_loader("train") if hypernet.executor.statistics.possible else None
    if loader is None and hypernet.executor.statistics:
        raise CommandError(
            f"new networks of {type(hypernet.target).__name__} need norm statistics: name the training data by --data or "
            "--config, or take the members of validation, which have theirs"
        )
    batches = None if loader is None else track(loader, "estimating norm statistics")
    condition = None if context is None else torch.tensor(list(context))
    return hypernet.ensemble(whole("-n", count), component, condition, batches)
