"""How the weights of members differ."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.population import Population


class _PairsOfNetworks(Metric):
    """The mean of a number over all pairs of networks of the populations it is updated with."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, population: Population) -> None:
        """Add the pairs of a population.

        Args:
            population: Two networks or more.

        Raises:
            ValueError: If it is a single network.
        """
        if len(population) < 2:
            raise ValueError("pairs need two networks or more, not 1")
        for index in range(1, len(population)):
            values = self.of_pairs(population[index : index + 1], population[:index])
            self.total += values.double().sum().to(self.total.device)
            self.count += len(values)

    @abstractmethod
    def of_pairs(self, one: Population, others: Population) -> Tensor:
        """The number for one network and each of the others: ``(others,)``."""

    def compute(self) -> Tensor:
        """The mean, a scalar."""
        return (self.total / self.count).float()

    def plot(self, value: Any = None, ax: Any = None) -> Any:
        """Draw a value, or several over time; by default what `compute` returns. Returns figure and axes of matplotlib."""
        return self._plot(value, ax)


class WeightCosine(_PairsOfNetworks):
    """Cosine of the angle between the gauge-fixed weights of two networks, the mean over all pairs.

    Example:
        >>> from torch import nn
        >>> metric = WeightCosine()
        >>> metric.update(Hypernet(nn.Linear(4, 2), example_inputs=torch.randn(2, 4)).sample(3))
        >>> metric.compute().shape
        torch.Size([])
    """

    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def of_pairs(self, one: Population, others: Population) -> Tensor:
        """The cosine for one network and each of the others: ``(others,)``."""
        return F.cosine_similarity(one.gauged.double(), others.gauged.double())


class SymmetryDistance(_PairsOfNetworks):
    """Distance of two networks after the best alignment, the mean over all pairs: 0 for the same functions, up to about 1.41.

    Args:
        hypernet: Where the networks come from; it knows the symmetries of its target. See `Hypernet.symmetry_distance`.
    """

    plot_lower_bound = 0.0

    def __init__(self, hypernet: Hypernet, **options: Any) -> None:
        super().__init__(**options)
        self._hypernet = [hypernet]  # a list, so that it is no part of the metric

    def of_pairs(self, one: Population, others: Population) -> Tensor:
        """The distance of one network from each of the others: ``(others,)``."""
        repeated = one[torch.zeros(len(others), dtype=torch.long)]
        return self._hypernet[0].symmetry_distance(others, repeated)
