"""How the weights of members differ."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.metrics.base import pair_mean
from lightning_hypernet.population import Population


def weight_cosine(population: Population) -> Tensor:
    """Cosine of the angle between the gauge-fixed weights of two networks, the mean over all pairs; a scalar."""
    directions = F.normalize(population.gauged.detach().double(), dim=1)
    return pair_mean(directions @ directions.T).float()


def mean_symmetry_distance(hypernet: Hypernet, population: Population) -> Tensor:
    """Distance of two networks after the best alignment (`Hypernet.symmetry_distance`), the mean over all pairs; a scalar."""
    pairs = torch.tensor(list(itertools.combinations(range(len(population)), 2)))
    if not len(pairs):
        raise ValueError("a distance needs two networks or more, not 1")
    return hypernet.symmetry_distance(population[pairs[:, 0]], population[pairs[:, 1]]).mean()
