"""Evidence: what data say of sampled networks, by importance weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_hypernet.analysis.batches import labelled
from lightning_hypernet.diversity import KL
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.population import Population
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.values import instance, whole


@dataclass(frozen=True)
class Evidence:
    """Networks and the logarithms of their importance weights.

    Args:
        population: S networks.
        log_weights: ``(S,)``, in nats.
    """

    population: Population
    log_weights: Tensor

    @property
    def elbo(self) -> float:
        """The mean of the log weights, a lower bound on the log evidence, in nats."""
        return float(self.log_weights.mean())

    def iwae(self, k: int = 50) -> float:
        r"""The importance-weighted bound of K networks, in nats, tighter with every network.

        .. math:: \mathbb{E} \log \frac{1}{K} \sum_k w_k

        References:
            | Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016)
            | https://arxiv.org/abs/1509.00519

        Args:
            k: K. The networks make as many groups of so many as there are, of which this is the mean.

        Raises:
            ValueError: If there are fewer networks than k.
        """
        k = whole("k", k)
        groups = len(self.log_weights) // k
        if not groups:
            raise ValueError(f"k must be at most {len(self.log_weights)}, the networks there are, not {k}")
        weights = self.log_weights[: groups * k].view(groups, k)
        return float((weights.logsumexp(1) - math.log(k)).mean())

    @property
    def effective_size(self) -> float:
        r"""How many evenly weighted networks the weighted ones are worth: :math:`(\sum w)^2 / \sum w^2`."""
        return effective_size(self.log_weights)

    def resample(self, n: int, seed: int = 0) -> Population:
        """Draw n of the networks in proportion to their weights, with repetition.

        As the number of networks grows these are draws from the posterior; one that is drawn often tells that there were too
        few. ``hypernet.ensemble(evidence.resample(10))`` makes an ensemble of them.

        Args:
            n: How many.
            seed: Of the draw.

        Returns:
            The population.
        """
        source = torch.Generator().manual_seed(whole("seed", seed, None))
        shares = self.log_weights.softmax(0).cpu()
        return self.population[torch.multinomial(shares, whole("n", n), replacement=True, generator=source)]


def effective_size(log_weights: Tensor) -> float:
    """How many evenly weighted networks are worth those whose weights have these logarithms, ``(S,)``."""
    return float(1 / log_weights.softmax(0).square().sum())


def of_each(likelihood: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    """The log likelihood of every example, ``(batch,)``.

    Raises:
        ValueError: If the function gives something else.
    """
    values = likelihood(outputs, targets)
    if not isinstance(values, Tensor) or values.shape != (len(targets),):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"likelihood must give a number for every example, ({len(targets)},), not {shape}")
    return values


def log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    """The log likelihood of classes ``(batch,)`` under logits ``(batch, classes)``, ``(batch,)``, in nats."""
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError("the targets are numbers, and no classes: pass likelihood=, as Normal(outputs, 1).log_prob(targets)")
    return -F.cross_entropy(outputs, targets, reduction="none")


@torch.no_grad()
def evidence(
    hypernet: Hypernet,
    loader: Iterable[Any],
    draws: int = 1000,
    likelihood: Callable[[Tensor, Tensor], Tensor] = log_likelihood,
    kl: KL | None = None,
) -> Evidence:
    r"""Weigh sampled networks by data.

    .. math:: \log w = \sum_n \log p(y_n | x_n, \theta) + \log p(\theta) - \log q(\theta)

    where the density q of weights is known. Where it is not, or given z alone, the prior of networks is what the generator
    makes of the prior of z, and the weight is the likelihood alone.

    Args:
        hypernet: The Hypernet.
        loader: Batches ``(inputs, targets)``: all of the data.
        draws: How many networks are drawn.
        likelihood: The log likelihood of every example, ``(batch,)``, of the outputs of a network and the targets.
        kl: The divergence that it was trained with, which knows the prior of weights; None: that of the Hypernet's ``"kl"``, or
            a standard normal one.

    Returns:
        The networks and their weights.

    Raises:
        ValueError: If the likelihood gives no number for every example, or the loader is empty.

    References:
        | Reinterpreting Importance-Weighted Autoencoders (Cremer, Morris and Duvenaud, 2017), https://arxiv.org/abs/1704.02916
    """
    instance("hypernet", hypernet, Hypernet, "a Hypernet")
    population = hypernet.sample(whole("draws", draws))
    total = torch.zeros(len(population), dtype=torch.float64)
    with evaluating(hypernet):
        for inputs, targets in labelled(loader, population.latents.z.device):
            for index, outputs in enumerate(hypernet.run(population, inputs)):
                total[index] += of_each(likelihood, outputs, targets).double().sum().cpu()
        generator, weights = hypernet.generator, population.weights
        if generator.density in ("exact", "bound"):
            losses = getattr(hypernet.diversity, "losses", {})
            used = kl or next((one for one in losses.values() if isinstance(one, KL)), None) or KL()
            density = generator.log_density(population.latents, weights)
            total += (used.log_prior(generator.coordinates(weights)) - density).double().cpu()
    return Evidence(population, total)
