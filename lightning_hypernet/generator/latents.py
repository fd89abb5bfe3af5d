"""Prior: where latents come from, with random numbers of its own."""

from __future__ import annotations

import random
from typing import Literal

import torch
from torch import Tensor, distributed
from torch.distributions import Distribution


class Prior:
    """Draws latents and the components they belong to.

    Every draw is seeded by the prior's seed, the number of the draw and the rank: ranks draw different networks, and a restored
    state continues bit for bit. The global random state is left alone.

    Args:
        distribution: ``"normal"``, ``"uniform"`` on [-1, 1], or a distribution of single numbers or of vectors of `latent_dim`.
        latent_dim: Numbers in z.
        components: Number of components.
    """

    def __init__(self, distribution: Literal["normal", "uniform"] | Distribution, latent_dim: int, components: int) -> None:
        if not isinstance(distribution, Distribution) and distribution not in ("normal", "uniform"):
            raise ValueError(f"prior must be 'normal', 'uniform' or a distribution, not {distribution!r}")
        self.distribution, self.latent_dim, self.components = distribution, latent_dim, components
        self.seed, self.draws = torch.initial_seed() % 2**62, 0

    def draw(self, n: int, component: int | None = None) -> tuple[Tensor, Tensor]:
        """Draw latents.

        Args:
            n: How many.
            component: The component of all; None: all components evenly, in random order.

        Returns:
            Latents ``(n, latent_dim)`` and components ``(n,)``, on the CPU.
        """
        rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
        seed = random.Random(f"{self.seed}-{self.draws}-{rank}").getrandbits(62)
        self.draws += 1
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            latents = self._latents(n)
            order = torch.cat([torch.randperm(self.components, device="cpu") for _ in range(n // self.components + 1)])[:n]
        return latents, order if component is None else torch.full((n,), component, device="cpu")

    def _latents(self, n: int) -> Tensor:
        if isinstance(self.distribution, Distribution):
            of_vectors = self.distribution.batch_shape + self.distribution.event_shape
            return self.distribution.sample(torch.Size((n,) if of_vectors else (n, self.latent_dim)))
        if self.distribution == "uniform":
            return torch.rand(n, self.latent_dim, device="cpu") * 2 - 1
        return torch.randn(n, self.latent_dim, device="cpu")
