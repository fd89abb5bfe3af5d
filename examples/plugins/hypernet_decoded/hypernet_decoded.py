"""A plug-in with one diversity loss that has parameters: weights are diverse if their latents can be told from them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hypernet import DiversityLoss, Population, hookimpl


class Decoded(DiversityLoss):
    r"""How badly a decoder, trained with the generator, reads z off the weights, in nats a latent number, up to a constant.

    .. math:: \frac{1}{2 d} \, E \, \| z - D(P \theta) \|^2

    with a fixed random projection P and a linear decoder D. Minus this is a lower bound of the mutual information of z and
    weights, up to a constant: networks that forget their latents are told apart by nobody.

    References:
        | The IM Algorithm: A Variational Approach to Information Maximization (Barber and Agakov, 2003)

    Args:
        features: Numbers that the projection leaves of the weights.
    """

    default_weight = 1e-2
    reads_outputs = False

    def __init__(self, features: int = 64) -> None:
        super().__init__()
        self.features = features
        self.decoder: nn.Linear | None = None

    def prepare(self, population: Population) -> None:
        """Build what depends on sizes, before the optimizer exists."""
        vectors, z = population.gauged, population.latents.z
        generator = torch.Generator().manual_seed(0)
        projection = torch.randn(vectors.shape[1], self.features, generator=generator) / vectors.shape[1] ** 0.5
        self.register_buffer("projection", projection.to(vectors))
        self.decoder = nn.Linear(self.features, z.shape[1]).to(vectors)

    def forward(self, population: Population) -> Tensor:
        """Map a population to a scalar; low = diverse."""
        seen = F.layer_norm(population.gauged @ self.projection, (self.features,))
        loss: Tensor = 0.5 * (population.latents.z - self.decoder(seen)).square().mean()
        return loss


@hookimpl
def hypernet_register_diversity(register: Callable[[str, type[DiversityLoss]], None]) -> None:
    """Make ``diversity={"decoded": ...}`` work."""
    register("decoded", Decoded)
