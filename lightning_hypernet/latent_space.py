"""LatentSpace: the latents of a Hypernet as free numbers, to optimise or to integrate over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to

from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.population import Population
from lightning_hypernet.values import instance, whole

PopulationValue = Callable[[Population], Tensor]
"""One number for every network of a population, ``(S,)``."""


class LatentSpace:
    r"""The latents of a Hypernet as free numbers u, its generator held as it is.

    A map takes u to z, which is z itself where the prior knows no bounds, and otherwise keeps z within the prior's support:

    .. math:: z = f(u), \qquad \log p(u) = \log p(z) + \log |\det \partial f / \partial u|

    Gradients go to u alone, and nothing of the Hypernet changes.

    Args:
        hypernet: The Hypernet.

    Raises:
        TypeError: If it is none.
        ValueError: If the prior draws whole numbers, which nothing can be followed over.
    """

    def __init__(self, hypernet: Hypernet) -> None:
        instance("hypernet", hypernet, Hypernet, "a Hypernet")
        self.hypernet = hypernet
        support = hypernet.prior.support
        if support.is_discrete:
            raise ValueError("the prior draws whole numbers, over which there is no gradient: search with search_surrogate()")
        self.map: Transform = biject_to(support)

    def draw(self, n: int, seed: int, component: int | None = None, context: Tensor | None = None) -> Latents:
        """Draw n latents of the prior by a seed of their own; the prior's own draws go on as if there had been none."""
        return drawn(self.hypernet, n, seed, component, context)

    def free(self, latents: Latents) -> Tensor:
        """The free numbers of latents, ``(S, numbers)``."""
        u: Tensor = self.map.inv(latents.z.detach())
        return u.clone()

    def latents(self, u: Tensor, like: Latents) -> Latents:
        """The latents of free numbers ``(S, numbers)``, with components and conditions of others."""
        return Latents(self.map(u), like.component, like.context)

    def decode(self, u: Tensor, like: Latents) -> Population:
        """The networks of free numbers ``(S, numbers)``, with components and conditions of other latents."""
        return self.hypernet.decode(self.latents(u, like))

    def log_prob(self, u: Tensor, like: Latents) -> Tensor:
        """Log density of z at free numbers, ``(S,)``, in nats."""
        return self.hypernet.prior.log_prob(self.latents(u, like))

    def log_volume(self, u: Tensor) -> Tensor:
        """By how much the map from u to z stretches volume, in nats, ``(S,)``; 0 where u is z."""
        stretch: Tensor = self.map.log_abs_det_jacobian(u, self.map(u))
        return stretch.reshape(len(u), -1).sum(1)


def drawn(hypernet: Hypernet, n: int, seed: int, component: int | None = None, context: Tensor | None = None) -> Latents:
    """Draw n latents of a Hypernet's prior by a seed of their own; the prior's own draws go on as if there had been none.

    Args:
        hypernet: The Hypernet.
        n: How many.
        seed: Of the draw.
        component: As of `Hypernet.sample`.
        context: As of `Hypernet.sample`.
    """
    prior = hypernet.prior
    kept = prior.get_extra_state()
    prior.set_extra_state({"seed": whole("seed", seed, None), "draws": 0})
    try:
        with torch.no_grad():
            return hypernet.draw(whole("n", n), component, context)
    finally:
        prior.set_extra_state(kept)


def check_values(name: str, values: object, count: int) -> Tensor:
    """See that something is one finite real number for every network.

    Args:
        name: What gave the values.
        values: What was given.
        count: How many networks there are.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(values, Tensor) or values.shape != (count,):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} must give one number for every network, ({count},), not {shape}")
    if values.is_complex():
        raise ValueError(f"{name} must give real numbers, not {values.dtype}")
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} gives NaN or infinite numbers for networks of the prior: bound it")
    return values
