"""Metrics of maps: what the members say together of every pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.metrics.base import PopulationMetric
from lightning_hypernet.values import whole


class EnsembleIoU(PopulationMetric):
    """Intersection over union of what the mean probability says with the labels, the mean over classes that occur in either.

    References:
        | The Pascal Visual Object Classes Challenge: A Retrospective (Everingham et al., 2015)
        | https://doi.org/10.1007/s11263-014-0733-5

    Args:
        classes: Number of classes.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    confusion: Tensor

    def __init__(self, classes: int, **options: Any) -> None:
        super().__init__(**options)
        self.classes = whole("classes", classes, 2)
        self.add_state("confusion", torch.zeros(self.classes, self.classes, dtype=torch.long), dist_reduce_fx="sum")

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch of probabilities ``(members, batch, classes)`` and labels ``(batch,)``."""
        if probabilities.shape[-1] != self.classes:
            raise ValueError(f"predictions are of {probabilities.shape[-1]} classes, and this metric of {self.classes}")
        said = probabilities.mean(0).argmax(-1)
        pairs = torch.bincount(labels * self.classes + said, minlength=self.classes**2)
        self.confusion += pairs.reshape(self.classes, self.classes).to(self.confusion)

    def compute(self) -> Tensor:
        """The mean over classes, a scalar."""
        hit = self.confusion.diagonal().double()
        union = self.confusion.sum(0) + self.confusion.sum(1) - hit
        return (hit / union)[union > 0].mean().float()
