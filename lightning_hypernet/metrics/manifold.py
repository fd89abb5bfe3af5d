"""Entropy of generated networks on the manifold that they form: by the Jacobian of the generator, and by neighbours."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.func import jvp, vmap

from lightning_hypernet.diversity.entropy import entropy_constants, nearest_distances
from lightning_hypernet.generator import DistributionPrior, Latents, Prior
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.metrics.base import Mean
from lightning_hypernet.population import Population, check_population
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.values import instance, switch, whole

_HELD = 1 << 23
"""Numbers of Jacobians that are held at once, where one network has no more."""


class ManifoldEntropy(Mean):
    r"""Entropy of the networks that a generator makes, on the manifold that they form, in nats.

    For :math:`\theta = G(z)`, one-to-one, z of d numbers and :math:`\theta` of D, the networks form a manifold of d dimensions.
    Their density is taken with respect to its own measure, of lengths, areas or volumes (the d-dimensional Hausdorff measure of
    Euclidean distances):

    .. math:: H(\theta) = \mathbb{E}\left[ -\log p(z) + \tfrac12 \log \det J^\top J \right],
        \qquad J = \frac{\partial \theta}{\partial z} \in \mathbb{R}^{D \times d}

    The mean is taken over the networks of all populations that `update` was given; `each` gives its terms. A copy of the
    generator is read, in evaluation mode and in double precision. Half the log determinant is the sum of the logarithms of J's
    singular values. Where one of them is zero, up to rounding, the manifold has collapsed: the entropy is minus infinity.

    With several components p is the density of z *and* of its component k, p(z | k) / components. The result is the entropy of
    all networks where the manifolds of the components do not meet, and at most log(components) above it where they do; that of
    a single component is log(components) less. Populations should hold the components evenly, as `Hypernet.sample` draws them.
    Under conditions it is the entropy given the condition, the mean over the conditions of the networks.

    Where G is not one-to-one, different z giving the same weights, the entropy is less than what this gives.

    Args:
        hypernet: Where the networks come from.
        gauge: Whether weights are seen through the Hypernet's gauge; False: as they are.
        directions: How many directions of z are followed at once.
        limit: The most numbers, D times d, that the Jacobian of one network may have.

    Raises:
        TypeError: If that is no Hypernet.
        ValueError: If the prior has no density, the generator adds noise, z has more numbers than there are weights, or
            the Jacobian is larger than the limit.

    Example:
        >>> from torch import nn
        >>> hypernet = Hypernet(nn.Linear(4, 2), example_inputs=torch.randn(2, 4), latent_dim=3)
        >>> metric = ManifoldEntropy(hypernet)
        >>> metric.update(hypernet.sample(5))
        >>> metric.compute().shape
        torch.Size([])

    References:
        | Geometric Integration Theory (Krantz and Parks, 2008), the area formula
        | Normalizing Flows on Riemannian Manifolds (Gemici et al., 2016)
        | https://arxiv.org/abs/1611.02304
    """

    higher_is_better = None

    def __init__(
        self, hypernet: Hypernet, gauge: bool = True, directions: int = 16, limit: int = 1 << 27, **options: Any
    ) -> None:
        super().__init__(**options)
        instance("hypernet", hypernet, Hypernet, "a Hypernet")
        self.gauge = switch("gauge", gauge)
        self.directions, limit = whole("directions", directions), whole("limit", limit)
        self.shapes = hypernet.banks.shapes
        _check_prior(hypernet.prior)
        _check_size(hypernet, limit)
        if hypernet.generator.density == "given_z":
            raise ValueError(
                f"{type(hypernet.generator).__name__} adds noise to weights, which then lie on no manifold of z: choose "
                "distribution='generator', or read its log_density"
            )
        self._hypernet = [hypernet]  # a list, so that it is no part of the metric

    def update(self, population: Population) -> None:
        """Add the networks of a population.

        Args:
            population: What the Hypernet has sampled, with its weights as they are now.

        Raises:
            TypeError: If it is no population.
            ValueError: As of `each`.
        """
        self.tally(self.each(population))

    def each(self, population: Population) -> Tensor:
        """What every network adds to the mean, minus its log density on the manifold: ``(S,)``, float64, in nats.

        Args:
            population: What the Hypernet has sampled, with its weights as they are now.

        Raises:
            TypeError: If it is no population.
            ValueError: If it is of another target, the generator does not give its weights for its latents, the prior has no
                density there, or a derivative is NaN or infinite.
        """
        check_population(population, self.shapes)
        hypernet = self._hypernet[0]
        like = next(iter(population.weights.values()))
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(like.device.type, enabled=False):
            latents = population.latents.map(lambda value: value.detach().clone())
            _check_weights(hypernet, latents, population.weights)
            volumes = torch.cat([_log_volumes(jacobian) for jacobian in self._jacobians(hypernet, latents)])
            return _surprise(hypernet.prior, latents).to(volumes) + volumes

    def _jacobians(self, hypernet: Hypernet, latents: Latents) -> Iterator[Tensor]:
        """The derivatives of weights, ``(networks, d, D)``, of some networks at a time."""
        generator = copy.deepcopy(hypernet.generator).double().eval().requires_grad_(False)
        exact = latents.to(latents.z.double())
        numbers = hypernet.banks.weights * hypernet.latent_dim
        for first in range(0, len(latents), step := max(1, _HELD // numbers)):
            some = exact[first : first + step]
            weights, tangents = _pushed(generator, some, self.directions)
            yield _through(hypernet.symmetries.gauge, weights, tangents) if self.gauge else _flat(tangents, 2)


class NeighbourEntropy(Mean):
    r"""Entropy of networks on the manifold that they form, estimated from distances to nearest neighbours, in nats.

    .. math:: H = \psi(N) - \psi(1) + \log V_d + \frac{d}{N} \sum_i \log \epsilon_i

    :math:`\epsilon_i` is the Euclidean distance of network i to the nearest other one of its population, d the number of
    numbers in z, and :math:`V_d` the volume of the unit ball in d dimensions. It reads weights alone, and tends to what
    `ManifoldEntropy` gives as the N networks of a population become more. Distances are Euclidean, since a small ball of them
    has the same volume on a manifold whichever way this lies. Two equal networks make it minus infinity.

    The result is the mean over all networks; those of each population are compared with each other alone.

    Args:
        gauge: Whether weights are seen through the gauge of the population; False: as they are.

    Example:
        >>> from torch import nn
        >>> metric = NeighbourEntropy()
        >>> metric.update(Hypernet(nn.Linear(4, 2), example_inputs=torch.randn(2, 4), latent_dim=3).sample(5))
        >>> metric.compute().shape
        torch.Size([])

    References:
        Sample estimate of the entropy of a random vector (Kozachenko and Leonenko, 1987)
    """

    higher_is_better = None

    def __init__(self, gauge: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.gauge = switch("gauge", gauge)

    @torch.no_grad()
    def update(self, population: Population) -> None:
        """Add the networks of a population.

        Args:
            population: Two networks or more.

        Raises:
            TypeError: If it is no population.
            ValueError: If it is a single network.
        """
        check_population(population)
        if len(population) < 2:
            raise ValueError("a nearest neighbour needs two networks or more, not 1")
        vectors = population.gauged if self.gauge else population.vectors
        distances = nearest_distances(vectors, all_ranks=False).double()
        dimension = population.latents.z.shape[1]
        count = torch.digamma(distances.new_tensor(float(len(distances))))
        self.tally(dimension * distances.log() + count + entropy_constants(dimension))


def _check_prior(prior: Prior) -> None:
    """Raise a ValueError unless a prior has a density in all directions of z."""
    remedy = "choose a prior with log_prob, such as 'normal'"
    if type(prior).log_prob is Prior.log_prob:
        raise ValueError(f"{type(prior).__name__} does not know its density, which the entropy of z needs; {remedy}")
    if isinstance(prior, DistributionPrior) and not _spread(prior.distribution):
        kind = type(prior.distribution).__name__
        raise ValueError(f"the prior's {kind} has no density of all numbers of z: {remedy}")


def _spread(distribution: Distribution) -> bool:
    """Whether a distribution of torch varies in all directions, as far as it tells."""
    try:
        support: Any = distribution.support
    except NotImplementedError:
        return True
    return not support.is_discrete and support is not constraints.simplex


def _check_size(hypernet: Hypernet, limit: int) -> None:
    """Raise a ValueError unless the Jacobian can have full rank, and is not too large."""
    weights, latent_dim = hypernet.banks.weights, hypernet.latent_dim
    if latent_dim > weights:
        raise ValueError(
            f"z has {latent_dim} numbers for {weights} weights, so that they can't be told apart: lower latent_dim"
        )
    if weights * latent_dim > limit:
        raise ValueError(
            f"the Jacobian of {weights:,} weights by {latent_dim} numbers of z holds {weights * latent_dim:,}, more than "
            f"limit={limit:,}: raise limit if there is the memory and the time, or lower latent_dim"
        )


def _check_weights(hypernet: Hypernet, latents: Latents, given: Mapping[str, Tensor]) -> None:
    """Raise a ValueError unless the generator maps latents to the weights that were given, as far as rounding goes."""
    with torch.no_grad(), evaluating(hypernet.generator):
        again = _flat(hypernet.generator(latents), 1)
    own = _flat(given, 1).detach()
    if not bool(own.isfinite().all()):
        raise ValueError("the population's weights hold NaN or infinite numbers: check the generator's weights")
    off = torch.linalg.vector_norm((own - again).double(), dim=1)
    size = torch.linalg.vector_norm(own.double(), dim=1)
    if not bool((off <= math.sqrt(torch.finfo(own.dtype).eps) * size).all()):
        raise ValueError(
            "the generator does not give the population's weights for its latents: sample one from the Hypernet as it is now, "
            "in evaluation mode, of a distribution that adds no noise"
        )


def _surprise(prior: Prior, latents: Latents) -> Tensor:
    """Minus the log density of z and its component, ``(S,)``, float64."""
    exact = latents.to(latents.z.to(torch.promote_types(latents.z.dtype, torch.float32)))
    with torch.no_grad():
        density = prior.log_prob(exact).double()
    if not bool(density.isfinite().all()):
        raise ValueError("the population has latents where the prior has no density: sample it from the Hypernet")
    return -density


def _flat(tensors: Mapping[str, Tensor], axes: int) -> Tensor:
    """Tensors side by side, their first axes kept."""
    return torch.cat([value.flatten(axes) if value.ndim > axes else value[..., None] for value in tensors.values()], dim=-1)


def _pushed(
    generator: Callable[[Latents], Mapping[str, Tensor]], latents: Latents, directions: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights ``{name: (S, *shape)}`` of latents, and their derivatives by every number of z, ``{name: (S, d, *shape)}``."""

    def weights(z: Tensor) -> dict[str, Tensor]:
        return dict(generator(replace(latents, z=z)))

    def along(direction: Tensor) -> Any:
        return jvp(weights, (latents.z,), (direction.expand_as(latents.z),))[1]

    unit = torch.eye(latents.z.shape[1]).to(latents.z)
    return weights(latents.z), vmap(along, out_dims=1, chunk_size=directions)(unit)


def _through(
    gauge: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]], weights: Mapping[str, Tensor], tangents: Mapping[str, Tensor]
) -> Tensor:
    """What a gauge makes of derivatives ``{name: (S, d, *shape)}`` at weights: ``(S, d, D)``.

    Gauges have gradients alone. The gradient is linear in what it is given, and its own gradient by that is the derivative.
    """
    given = {name: value.detach().requires_grad_() for name, value in weights.items()}
    fixed = _flat(dict(gauge(given)), 1)
    seed = torch.zeros_like(fixed, requires_grad=True)
    pulled = torch.autograd.grad(fixed, list(given.values()), seed, create_graph=True)
    columns = [
        torch.autograd.grad(pulled, seed, [tangents[name][:, index] for name in given], retain_graph=True)[0]
        for index in range(next(iter(tangents.values())).shape[1])
    ]
    return torch.stack(columns, dim=1)


def _log_volumes(jacobians: Tensor) -> Tensor:
    """Half the log determinants of the squares of ``(S, d, D)``, ``(S,)``: minus infinity where rank is lost."""
    if not bool(jacobians.isfinite().all()):
        raise ValueError("derivatives of the weights by z are NaN or infinite: check the generator's weights")
    triangles = torch.linalg.qr(jacobians.mT, mode="r").R
    values = torch.linalg.svdvals(triangles)
    least = torch.finfo(values.dtype).eps * jacobians.shape[2] * values[:, :1]
    return torch.where(values > least, values, 0.0).log().sum(1)
