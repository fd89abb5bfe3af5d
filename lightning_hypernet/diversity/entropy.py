"""Entropy of the weights, by distances to nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, distributed

from lightning_hypernet.diversity.base import DiversityLoss
from lightning_hypernet.population import Population


def _ranks() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _of_all_ranks(vectors: Tensor) -> tuple[Tensor, int]:
    """The vectors of all ranks, ``(ranks * N, D)``, and the position of this rank's first."""
    vectors = vectors.detach().contiguous()
    if _ranks() == 1:
        return vectors, 0
    gathered = [torch.empty_like(vectors) for _ in range(_ranks())]
    distributed.all_gather(gathered, vectors)
    return torch.cat(gathered), distributed.get_rank() * len(vectors)


def _with_gradient(vectors: Tensor, everyone: Tensor, nearest: Tensor, first: int) -> Tensor:
    """The neighbours; those that are vectors of this rank pass gradients on."""
    here = (nearest >= first) & (nearest < first + len(vectors))
    return torch.where(here[:, None], vectors[(nearest - first).clamp(0, len(vectors) - 1)], everyone[nearest])


def nearest_distances(vectors: Tensor, p: Literal[1, 2] = 2) -> Tensor:
    """Distance of every vector to its nearest other one.

    Neighbours are found without gradient; only the N true distances are differentiated, as norms of differences, so
    that memory is O(N D). The gradient of a distance of zero is zero. Under distributed training the neighbours are
    searched among the vectors of all ranks; one of another rank is a constant here.

    Args:
        vectors: ``(N, D)``, N > 1.
        p: 2 for Euclidean distances, 1 for sums of absolute differences.

    Returns:
        ``(N,)``, in float32 or better.

    Raises:
        ValueError: If there are fewer than two vectors.
    """
    if len(vectors) * _ranks() < 2:
        raise ValueError(f"a nearest neighbour needs two networks or more, not {len(vectors)}; raise `samples`")
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    with torch.no_grad():
        everyone, first = _of_all_ranks(vectors)
        own = torch.arange(first, first + len(vectors), device=vectors.device)
        centered = everyone - everyone.mean(0)
        distances = torch.cdist(centered[own] if _ranks() > 1 else centered, centered, p, "use_mm_for_euclid_dist")
        nearest = distances.index_put((own - first, own), distances.new_tensor(math.inf)).argmin(1)
    neighbours = vectors[nearest] if _ranks() == 1 else _with_gradient(vectors, everyone, nearest, first)
    distances_to_nearest: Tensor = torch.linalg.vector_norm(vectors - neighbours, p, dim=1)
    return distances_to_nearest


def entropy(vectors: Tensor, dimension: int, p: Literal[1, 2] = 2, eps: float = 1e-8) -> Tensor:
    r"""The Kozachenko-Leonenko estimate, without its constants, of the entropy of what N vectors were drawn from.

    .. math:: H = d \frac{1}{N} \sum_i \log(\epsilon_i + \mathrm{eps}) + \psi(N)

    Args:
        vectors: ``(N, D)``.
        dimension: d, the dimension of the manifold the vectors lie on: that of z.
        p: 2 for Euclidean distances, 1 for the sums of absolute differences of the original code.
        eps: Keeps exact duplicates finite.

    Returns:
        A scalar, in nats.

    References:
        | Sample estimate of the entropy of a random vector (Kozachenko and Leonenko, 1987)
        | A Generative Model for Sampling High-Performance and Diverse Weights for Neural Networks (Deutsch et al., 2019)
        | https://arxiv.org/abs/1905.02898
    """
    distances = nearest_distances(vectors, p)
    count = distances.new_tensor(float(len(vectors) * _ranks()))
    return dimension * (distances + eps).log().mean() + torch.digamma(count)


class Entropy(DiversityLoss):
    """Minus the entropy of the gauge-fixed weights, the paper's diversity term.

    Args:
        p: 2 for Euclidean distances, 1 for sums of absolute differences.
        coordinates: How many coordinates of the weights are read, drawn anew each time and alike on all ranks, or which
            ones; None: all.
        samples: How many networks of the population are read; None: all.
    """

    draws: Tensor

    def __init__(
        self,
        p: Literal[1, 2] = 2,
        coordinates: int | Sequence[int] | None = None,
        samples: int | None = None,
    ) -> None:
        super().__init__()
        if p not in (1, 2):
            raise ValueError(f"p must be 1 or 2, not {p}")
        self.p, self.coordinates, self.samples = p, coordinates, samples
        self.register_buffer("draws", torch.zeros((), dtype=torch.long))

    def forward(self, population: Population) -> Tensor:
        """Map a population to minus its entropy, in nats."""
        vectors = population.gauged[: self.samples]
        if isinstance(self.coordinates, int):
            self.draws += 1
            generator = torch.Generator().manual_seed(int(self.draws))
            chosen = torch.randperm(vectors.shape[1], generator=generator)[: self.coordinates]
            vectors = vectors[:, chosen.to(vectors.device)]
        elif self.coordinates is not None:
            vectors = vectors[:, list(self.coordinates)]
        return -entropy(vectors, population.latents.shape[1], self.p)
