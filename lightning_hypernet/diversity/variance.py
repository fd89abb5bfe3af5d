"""Variance of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_hypernet.diversity.base import DiversityLoss
from lightning_hypernet.population import Population


class Variance(DiversityLoss):
    """Minus the mean log standard deviation of the gauge-fixed weights within a component, in nats a coordinate.

    Of normal weights it is right in the mean over draws, however few networks are drawn.

    Components differ from one another whatever a loss does, so the variance between them would hide that one of them has
    shrunk to a single network. Hence a population must hold two networks of some component: ``samples`` > ``components``.
    """

    default_weight = 1e-2
    least_networks = 2
    reads_outputs = False

    def forward(self, population: Population) -> Tensor:
        """Map a population to minus the mean log standard deviation of its coordinates.

        Raises:
            ValueError: If every network is of another component.
        """
        if len(population.latents.component.unique()) == len(population):
            raise ValueError(
                f"each of the {len(population)} networks drawn is of another component, so none can vary; set samples to twice "
                "the components or more"
            )
        vectors = population.gauged.to(torch.promote_types(population.gauged.dtype, torch.float32))
        sums = vectors.new_zeros(population.n_components, vectors.shape[1]).index_add(0, population.latents.component, vectors)
        counts = population.latents.component.bincount(minlength=population.n_components).clamp(min=1)
        means = sums / counts[:, None]
        variance = (vectors - means[population.latents.component]).square().mean(0)
        count = vectors.new_tensor(len(vectors))
        free = count - len(population.latents.component.unique())
        low = (free / 2).digamma() + (2 / count).log()  # the mean log of the variance of so few, which are normal with one of 1
        return -0.5 * ((variance + 1e-8).log().mean() - low)
