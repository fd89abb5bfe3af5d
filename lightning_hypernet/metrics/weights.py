"""How the weights of members differ."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.metrics.base import Mean
from lightning_hypernet.population import Population, check_population
from lightning_hypernet.values import instance


class _PairsOfNetworks(Mean):
    """The mean of a number over all pairs of networks of the populations it is updated with."""

    higher_is_better = None
    shapes: Mapping[str, Any] | None = None
    """Of the target's parameters; None: of any target."""

    @torch.no_grad()
    def update(self, population: Population) -> None:
        """Add the pairs of a population.

        Args:
            population: Two networks or more.

        Raises:
            ValueError: If it is a single network.
        """
        check_population(population, self.shapes)
        if len(population) < 2:
            raise ValueError("pairs need two networks or more, not 1")
        for index in range(1, len(population)):
            self.tally(self.of_pairs(population[index : index + 1], population[:index]))

    @abstractmethod
    def of_pairs(self, one: Population, others: Population) -> Tensor:
        """The number for one network and each of the others: ``(others,)``."""


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
        instance("hypernet", hypernet, Hypernet, "a Hypernet")
        self.shapes = hypernet.banks.shapes
        self._hypernet = [hypernet]  # a list, so that it is no part of the metric

    def of_pairs(self, one: Population, others: Population) -> Tensor:
        """The distance of one network from each of the others: ``(others,)``."""
        repeated = one[torch.zeros(len(others), dtype=torch.long)]
        return self._hypernet[0].symmetries.distance(others.weights, repeated.weights)
