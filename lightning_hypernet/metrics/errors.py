"""How the errors of members fall together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.metrics.base import PopulationMetric, pair_mean


class _Coincidence(PopulationMetric):
    """Counts, for every pair of members, how often both are right, one is, and none is."""

    both: Tensor
    right: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("both", torch.zeros(1, 1, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("right", torch.zeros(1, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch of probabilities ``(members, batch, classes)`` and labels ``(batch,)``."""
        self.same_members(self.right, probabilities)
        right = (probabilities.argmax(-1) == labels).double()
        self.both = self.both + right @ right.T
        self.right = self.right + right.sum(1)
        self.count += len(labels)

    def _shares(self) -> tuple[Tensor, Tensor, Tensor]:
        """For all pairs: both right, the first alone, none."""
        alone = self.right[:, None] - self.both
        none = self.count - self.both - alone - alone.T
        return self.both / self.count, alone / self.count, none / self.count


class DoubleFault(_Coincidence):
    """Share of examples that both of two members get wrong, the mean over all pairs.

    References:
        Design of effective neural network ensembles for image classification purposes (Giacinto and Roli, 2001)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def compute(self) -> Tensor:
        """The share, a scalar."""
        return pair_mean(self._shares()[2]).float()


class QStatistic(_Coincidence):
    r"""Yule's Q of the correctness of two members, the mean over all pairs: 0 for independent ones, 1 for alike ones.

    .. math:: Q = \frac{N^{11} N^{00} - N^{01} N^{10}}{N^{11} N^{00} + N^{01} N^{10}}

    A pair for which the denominator is zero, one of which is always right say, counts as 0.

    References:
        Measures of diversity in classifier ensembles (Kuncheva and Whitaker, 2003)
    """

    higher_is_better = False
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def compute(self) -> Tensor:
        """Q, a scalar."""
        both, alone, none = self._shares()
        same, different = both * none, alone * alone.T
        total = same + different
        return pair_mean(torch.where(total > 0, (same - different) / total.clamp(min=1e-300), 0.0)).float()
