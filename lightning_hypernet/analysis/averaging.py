"""Averaging: how good the mean of sampled weights is, against how many are averaged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.analysis.batches import labelled
from lightning_hypernet.ensemble import Ensemble
from lightning_hypernet.metrics.base import checked_labels
from lightning_hypernet.target.loaders import check_loader
from lightning_hypernet.values import instance, wholes


@dataclass(frozen=True)
class Averaging:
    """Accuracies against the number of networks.

    Args:
        counts: Numbers of networks.
        average: ``(counts,)``, of the network with the mean of their weights.
        ensemble: ``(counts,)``, of their mean probability.
    """

    counts: Sequence[int]
    average: Tensor
    ensemble: Tensor

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw both over the number; returns figure and axes of matplotlib."""
        from matplotlib import pyplot

        figure, axes = (ax.figure, ax) if ax is not None else pyplot.subplots(layout="constrained")
        for values, name in ((self.average, "average of weights"), (self.ensemble, "ensemble")):
            axes.plot(self.counts, 100 * values, marker="o", label=name)
        axes.set(xlabel="networks", ylabel="accuracy, %", xscale="log")
        axes.legend()
        return figure, axes


@torch.no_grad()
def averaging(
    ensemble: Ensemble, loader: Iterable[Any], counts: Sequence[int] = (1, 2, 5, 10, 20, 50, 100), training: Any = None
) -> Averaging:
    """Accuracy of the average of the first members, and of their ensemble, for growing numbers of them.

    The weights are averaged as they are generated, not gauge-fixed as on paths.

    References:
        | A Generative Model for Sampling High-Performance and Diverse Weights for Neural Networks (Deutsch et al., 2019)
        | https://arxiv.org/abs/1905.02898, section 4.4

    Args:
        ensemble: The members, of one component of the prior.
        loader: Batches ``(inputs, labels)``.
        counts: Numbers of members, up to all.
        training: Batches of training data for the norm statistics of the averages, if the target has any.

    Returns:
        The accuracies.

    Raises:
        TypeError: If something is not what it must be.
        ValueError: If the loader is empty, labels are no classes, or no count is within the ensemble.
    """
    instance("ensemble", ensemble, Ensemble, "an Ensemble, as hypernet.ensemble(10) gives")
    asked = wholes("counts", counts)
    counts = [count for count in asked if count <= len(ensemble)]
    if not counts:
        raise ValueError(f"there are {len(ensemble)} members: give counts from 1 to that, not {asked}")
    if training is not None:
        check_loader(training, "training", again=True)
    averages = [ensemble[:count].average(training) for count in counts]
    right = torch.zeros(2, len(counts), dtype=torch.double)
    total = 0
    for inputs, labels in labelled(loader, ensemble.latents.z.device):
        probabilities = ensemble.members(inputs).softmax(-1)
        labels = checked_labels(labels, probabilities)
        total += len(labels)
        for index, (count, network) in enumerate(zip(counts, averages, strict=True)):
            right[0, index] += (network(inputs).argmax(-1) == labels).sum().cpu()
            right[1, index] += (probabilities[:count].mean(0).argmax(-1) == labels).sum().cpu()
    shares = (right / total).float()
    return Averaging(counts, shares[0], shares[1])
