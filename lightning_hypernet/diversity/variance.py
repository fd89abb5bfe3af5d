"""Variance of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_hypernet.diversity.base import DiversityLoss
from lightning_hypernet.population import Population


class Variance(DiversityLoss):
    """Minus the mean log standard deviation of the gauge-fixed weights over the population, in nats a coordinate."""

    default_weight = 1e-2

    def forward(self, population: Population) -> Tensor:
        """Map a population to minus the mean log standard deviation of its coordinates."""
        vectors = population.gauged.to(torch.promote_types(population.gauged.dtype, torch.float32))
        return -0.5 * (vectors.var(0, correction=0) + 1e-8).log().mean()
