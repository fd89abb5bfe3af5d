"""Accuracies: of each member, and of the members together."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_hypernet.metrics.base import MeanScore, PopulationMetric
from lightning_hypernet.values import choice


class MemberAccuracy(PopulationMetric):
    """Accuracy of every member.

    Args:
        reduce: ``"mean"`` over members, the ``"best"`` member, or ``"none"``: ``(members,)``.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    correct: Tensor
    count: Tensor

    def __init__(self, reduce: Literal["mean", "best", "none"] = "mean", **options: Any) -> None:
        super().__init__(**options)
        self.reduce = choice("reduce", reduce, ("mean", "best", "none"))
        self.add_state("correct", torch.zeros(1, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch of probabilities ``(members, batch, classes)`` and labels ``(batch,)``."""
        self.same_members(self.correct, probabilities)
        self.correct = self.correct + (probabilities.argmax(-1) == labels).sum(1)
        self.count += len(labels)

    def compute(self) -> Tensor:
        """The accuracy: a scalar, or ``(members,)``."""
        accuracies = self.correct.double().div(self.count).float()
        if self.reduce == "none":
            return accuracies
        return accuracies.mean() if self.reduce == "mean" else accuracies.max()

    def plot(self, value: Any = None, ax: Any = None) -> Any:
        """Draw a value or several over time; with ``reduce="none"`` a histogram of the members."""
        if self.reduce != "none":
            return super().plot(value, ax)
        from matplotlib import pyplot

        figure, axes = (ax.figure, ax) if ax is not None else pyplot.subplots(layout="constrained")
        accuracies = 100 * (self.compute() if value is None else value)
        axes.hist(accuracies.cpu().numpy(), bins=max(5, min(40, len(accuracies) // 4)))
        axes.set(xlabel="accuracy, %", ylabel="networks")
        return figure, axes


class EnsembleAccuracy(MeanScore):
    """Accuracy of the members together.

    Args:
        vote: ``"mean"``: the class of the largest mean probability; ``"majority"``: the class that most members predict, of
            several the first.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, vote: Literal["mean", "majority"] = "mean", **options: Any) -> None:
        super().__init__(**options)
        self.vote = choice("vote", vote, ("mean", "majority"))

    def score(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """1 for every example that is right, ``(batch,)``."""
        votes = F.one_hot(probabilities.argmax(-1), probabilities.shape[-1]) if self.vote == "majority" else probabilities
        return (votes.double().mean(0).argmax(-1) == labels).float()
