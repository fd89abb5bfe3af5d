"""Mutual information between the latent and the network it became."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hypernet.diversity.base import DiversityLoss
from lightning_hypernet.population import Population
from lightning_hypernet.values import choice, real, whole


class MutualInformation(DiversityLoss):
    r"""Minus a lower bound on the mutual information of z and the network: a small network q recovers z.

    .. math:: I(z; \theta) \geq \mathbb{E} \log q(z \mid \theta) + H(z)

    q is trained with the generator, by one optimizer. A continuous z is recovered as a Gaussian whose deviations are learnt;
    with ``latent="component"`` the component is recovered as a category. The constant H(z) is left out for the former; the
    latter gives minus the bound itself, whose least value is minus log(components). The bound tells what q can decode: read
    it beside the disagreement of the members, never as the diversity itself.

    Args:
        reads: ``"weights"``, gauge-fixed, or ``"outputs"``, on the Hypernet's `example_inputs`, which must be given.
        latent: ``"continuous"`` or ``"component"``.
        coordinates: Recover the first so many numbers of z; None: all.
        hidden: Width of q.
        noise: Standard deviation of Gaussian noise added to what q reads.

    References:
        | Variational Mutual Information Maximization Framework for VAE Latent Codes (Serdega and Kim, 2020)
        | https://arxiv.org/abs/2005.13953
    """

    default_weight = 0.1

    def __init__(
        self,
        reads: Literal["weights", "outputs"] = "weights",
        latent: Literal["continuous", "component"] = "continuous",
        coordinates: int | None = None,
        hidden: int = 128,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.reads = choice("reads", reads, ("weights", "outputs"))
        self.reads_outputs = self.reads == "outputs"
        self.latent = choice("latent", latent, ("continuous", "component"))
        self.coordinates = None if coordinates is None else whole("coordinates", coordinates)
        self.hidden, self.noise = whole("hidden", hidden), real("noise", noise, least=0)
        self.q = nn.Sequential()
        self.log_std: nn.Parameter | None = None

    def prepare(self, population: Population) -> None:
        """Build q for the sizes of this population.

        Raises:
            ValueError: If the component shall be recovered but there is only one.
        """
        if self.latent == "component" and population.n_components < 2:
            raise ValueError("mutual_information with latent='component' needs components > 1")
        inputs = population.banks.weights if self.reads == "weights" else self._features(population).shape[1]
        outputs = population.n_components if self.latent == "component" else self._latents(population).shape[1]
        self.q = nn.Sequential(
            nn.Linear(inputs, self.hidden), nn.LayerNorm(self.hidden), nn.ReLU(), nn.Linear(self.hidden, outputs)
        ).to(population.latents.z)
        if self.latent == "continuous":
            self.log_std = nn.Parameter(population.latents.z.new_zeros(outputs))

    def _features(self, population: Population) -> Tensor:
        if self.reads == "weights":
            return population.gauged
        return population.example_outputs.flatten(1)

    def _latents(self, population: Population) -> Tensor:
        return population.latents.z[:, : self.coordinates]

    def forward(self, population: Population) -> Tensor:
        """Map a population to minus the bound, in nats.

        Raises:
            ValueError: If q was not built yet.
        """
        features = self._features(population)
        if not self.q:
            raise ValueError("mutual_information has not seen a population yet; call prepare(population) first")
        guess: Tensor = self.q(features + self.noise * torch.randn_like(features))
        if self.latent == "component":
            return F.cross_entropy(guess, population.latents.component) - math.log(population.n_components)
        assert self.log_std is not None
        deviation = (self._latents(population) - guess) / self.log_std.exp()
        return (0.5 * deviation.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(1).mean()
