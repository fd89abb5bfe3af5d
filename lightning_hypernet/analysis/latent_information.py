"""Latent information: how much of its latent a network tells, at least, and how much it could tell at most."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_hypernet.analysis.neighbours import finite
from lightning_hypernet.analysis.readers import Reader, fit_reader
from lightning_hypernet.generator import NormalPrior, Prior, UniformPrior
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.population import Population
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.values import choice, instance, real, whole

_CHUNK = 100
"""Networks that are there at once, of which only what q reads is kept."""


@dataclass(frozen=True)
class LatentInformation:
    """Lower bounds on the mutual information of latents and networks, in nats, each with its maximum.

    Args:
        bound: The bound of q on networks that it has not seen; it may lie below 0.
        error: Its standard error over these networks.
        maximum: The most that the information, and so the bound, can be: infinite if nothing limits it.
        contrastive: The bound that q gives by telling each network's z from those of the other networks; None for a component.
        contrastive_maximum: The most that can be, the logarithm of the number of networks.
        each: ``(latent_dim,)``, the bound for every number of z by itself; None for a component, or numbers that the prior
            does not draw independently.
        name: What is told, and by what.
    """

    bound: float
    error: float
    maximum: float
    contrastive: float | None
    contrastive_maximum: float
    each: Tensor | None
    name: str

    def __str__(self) -> str:
        told = f"{self.name}: {self.bound:.3f} nats or more (standard error {self.error:.3f}), {finite(self.maximum)}"
        if self.contrastive is None:
            return told
        return f"{told}; contrastive {self.contrastive:.3f} or more, at most {self.contrastive_maximum:.3f}"

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw the bounds, with a line at each one's maximum; returns figure and axes of matplotlib."""
        from matplotlib import pyplot

        figure, axes = (ax.figure, ax) if ax is not None else pyplot.subplots(figsize=(4, 4), layout="constrained")
        bars = [("bound of q", self.bound, self.maximum)]
        if self.contrastive is not None:
            bars.append(("contrastive", self.contrastive, self.contrastive_maximum))
        for place, (_, value, most) in enumerate(bars):
            axes.bar(place, value, 0.6, color="tab:blue")
            if math.isfinite(most):
                axes.hlines(most, place - 0.4, place + 0.4, color="tab:red", label="_" if place else "maximum")
            axes.annotate(
                "no maximum" if math.isinf(most) else f"max {most:.2f}", (place, max(value, 0)), ha="center", va="bottom"
            )
        axes.set_xticks(range(len(bars)), [name for name, *_ in bars])
        axes.set(ylabel="information, nats", title=self.name)
        axes.margins(y=0.15)
        return figure, axes


def latent_information(
    hypernet: Hypernet,
    reads: Literal["weights", "outputs"] | Callable[[Population], Tensor] = "weights",
    latent: Literal["continuous", "component"] = "continuous",
    networks: int = 2000,
    held_out: int = 1000,
    inputs: Any = None,
    noise: float = 0.0,
    hidden: int = 128,
    steps: int = 500,
    seed: int = 0,
) -> LatentInformation:
    r"""Bound the mutual information of z and the network, for a frozen generator: a small network q recovers z.

    .. math:: I(z; \theta) \geq \mathbb{E} \log q(z \mid \theta) + H(z), \qquad
        I(z; \theta) \geq \mathbb{E} \log \frac{f_{ii}}{\frac1M \sum_j f_{ij}} \leq \log M,
        \quad f_{ij} = \frac{q(z_j \mid \theta_i)}{p(z_j)}

    q is fitted to some networks, stopped by others, and read on M more; the generator is left as it is. A continuous z is
    recovered as a Gaussian of independent numbers, given the component where there are several; a component as a category,
    whose information is at most log(components).

    Where a generator is one-to-one, a continuous z is told by its weights without any bound: the information is infinite,
    and what is seen is how well *this q* decodes them. Differences too small to matter count as much as large ones. Read the
    bound as a lower one, beside its maximum and the disagreement of the members, never as the diversity. Gaussian noise added
    to what q reads makes the information finite: at most that of a Gaussian channel,

    .. math:: I \leq \tfrac12 \log \det (1 + C / \sigma^2)

    for the covariance C of what is read without the noise, here that of the sampled networks.

    Args:
        hypernet: The Hypernet, which stays as it is.
        reads: ``"weights"``, gauge-fixed, ``"outputs"``, or a function of a population that returns numbers ``(S, ...)``.
        latent: ``"continuous"`` or ``"component"``.
        networks: How many networks q is fitted to; a fifth of them stops it.
        held_out: M, how many networks the bounds are read on.
        inputs: What outputs are read on; None: the first of the Hypernet's `example_inputs`, which must be given.
        noise: Standard deviation of Gaussian noise added to what q reads, in the same units.
        hidden: Width of q.
        steps: Steps of its fit.
        seed: Of q and the noise; the networks are the Hypernet's next draws.

    Returns:
        The bounds.

    Raises:
        TypeError: If this is no Hypernet.
        ValueError: If a number is out of range, there is only one component to recover, the prior has no density, or what is
            read are no finite numbers of every network.

    References:
        | Variational Mutual Information Maximization Framework for VAE Latent Codes (Serdega and Kim, 2020)
        | https://arxiv.org/abs/2005.13953
        | On Mutual Information Maximization for Representation Learning (Tschannen et al., 2020)
        | https://arxiv.org/abs/1907.13625
        | Representation Learning with Contrastive Predictive Coding (van den Oord, Li and Vinyals, 2018)
        | https://arxiv.org/abs/1807.03748
    """
    instance("hypernet", hypernet, Hypernet, "a Hypernet")
    if not callable(reads):
        reads = choice("reads", reads, ("weights", "outputs"))
    latent = choice("latent", latent, ("continuous", "component"))
    networks, held_out, noise = whole("networks", networks, 10), whole("held_out", held_out, 2), real("noise", noise, least=0)
    hidden, steps, seed = whole("hidden", hidden), whole("steps", steps, 0), whole("seed", seed, None)
    if latent == "component" and hypernet.components < 2:
        raise ValueError("latent='component' needs a Hypernet with components > 1; this one has 1")
    if latent == "continuous" and type(hypernet.prior).log_prob is Prior.log_prob:
        raise ValueError(f"{type(hypernet.prior).__name__} does not know its density: choose a prior with log_prob")
    read = reads if callable(reads) else _of_outputs(hypernet, inputs) if reads == "outputs" else _of_weights
    features, z, component, log_prior = _drawn(hypernet, read, networks + held_out)
    given = (
        F.one_hot(component, hypernet.components).to(features) if latent == "continuous" and hypernet.components > 1 else None
    )
    wanted = component if latent == "component" else z
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        outputs = hypernet.components if latent == "component" else hypernet.latent_dim
        reader = fit_reader(
            features[:networks], wanted[:networks], _some(given, slice(networks)), outputs, noise, hidden, steps
        )
        seen = reader.guess(features[networks:], _some(given, slice(networks, None)))
    told = reads if isinstance(reads, str) else getattr(reads, "__name__", "what is read")
    if latent == "component":
        values = -F.cross_entropy(seen, component[networks:], reduction="none") + math.log(hypernet.components)
        most = math.log(hypernet.components)
        return LatentInformation(*_mean(values), most, None, math.log(held_out), None, f"I(component; {told})")
    densities = reader.log_densities(z[networks:], seen)
    entropy = _entropy(hypernet.prior)
    values = densities.sum(1) - log_prior[networks:] if entropy is None else (densities + entropy).sum(1)
    contrastive, cap = _contrastive(reader, z[networks:], seen, log_prior[networks:], component[networks:])
    return LatentInformation(
        *_mean(values),
        _capacity(features, component, noise) if noise else math.inf,
        contrastive,
        cap,
        None if entropy is None else densities.mean(0) + entropy,
        f"I(z; {told})" if given is None else f"I(z; {told} | component)",
    )


def _some(value: Tensor | None, index: slice) -> Tensor | None:
    """Some rows of a tensor that may not be there."""
    return None if value is None else value[index]


def _mean(values: Tensor) -> tuple[float, float]:
    """A mean and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


@torch.no_grad()
def _drawn(hypernet: Hypernet, reads: Callable[[Population], Tensor], count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of networks: what is read, z, component and log density of z given its component, on the CPU."""
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    with evaluating(hypernet):
        for first in range(0, count, _CHUNK):
            population = hypernet.sample(min(_CHUNK, count - first))
            latents = population.latents
            read = _read(population, reads)
            known = type(hypernet.prior).log_prob is not Prior.log_prob
            density = (
                hypernet.prior.log_prob(latents) + math.log(hypernet.components) if known else latents.z.new_zeros(len(read))
            )
            rows.append((read, latents.z.cpu().double(), latents.component.cpu(), density.cpu().double()))
    features, z, component, density = (torch.cat(part) for part in zip(*rows, strict=True))
    return features, z, component, density


def _of_weights(population: Population) -> Tensor:
    """Gauge-fixed weights, ``(S, weights)``."""
    return population.gauged


def _of_outputs(hypernet: Hypernet, inputs: Any) -> Callable[[Population], Tensor]:
    """What maps a population to its outputs on inputs."""
    return (lambda population: population.example_outputs) if inputs is None else lambda one: hypernet.run(one, inputs)


def _read(population: Population, reads: Callable[[Population], Tensor]) -> Tensor:
    """What q reads of every network, ``(S, numbers)``, float64, on the CPU."""
    read = reads(population)
    if not isinstance(read, Tensor) or not read.ndim or len(read) != len(population):
        shape = tuple(read.shape) if isinstance(read, Tensor) else type(read).__name__
        raise ValueError(f"what is read must be a tensor with a row for each of the {len(population)} networks, not {shape}")
    read = read.flatten(1) if read.ndim > 1 else read[:, None]
    if not bool(read.isfinite().all()):
        raise ValueError("what is read of the networks holds NaN or infinite numbers: check the generator's weights")
    return read.cpu().double()


def _capacity(features: Tensor, component: Tensor, noise: float) -> float:
    """Information that a Gaussian channel carries at most of features ``(n, D)`` of their own component, in nats."""
    centred = torch.cat([part - part.mean(0) for part in (features[component == one] for one in component.unique())])
    small = centred.T @ centred if centred.shape[1] < len(centred) else centred @ centred.T
    variances = torch.linalg.eigvalsh(small).clamp(min=0) / len(centred)
    return float(0.5 * torch.log1p(variances / noise**2).sum())


def _contrastive(reader: Reader, z: Tensor, seen: Tensor, log_prior: Tensor, component: Tensor) -> tuple[float, float]:
    """The bound by telling z from those of networks of the same component, and its maximum, in nats."""
    values, most = [], []
    for one in component.unique():
        own, guesses, prior = (value[component == one] for value in (z, seen, log_prior))
        table = torch.stack([reader.log_densities(own, guess).sum(1) - prior for guess in guesses])
        values.append(table.diagonal() - table.logsumexp(1) + math.log(len(own)))
        most.append(torch.full((len(own),), math.log(len(own)), dtype=torch.float64))
    return float(torch.cat(values).mean()), float(torch.cat(most).mean())


def _entropy(prior: Prior) -> float | None:
    """The entropy of a number of z, in nats, where the prior draws all independently and alike."""
    if isinstance(prior, NormalPrior):
        return 0.5 * math.log(2 * math.pi * math.e)
    return math.log(2) if isinstance(prior, UniformPrior) else None
