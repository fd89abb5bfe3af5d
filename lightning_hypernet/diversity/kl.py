"""The divergence of networks from a prior of their weights: variational inference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Cauchy, Distribution, Laplace, Normal

from lightning_hypernet.diversity.base import DiversityLoss
from lightning_hypernet.diversity.entropy import entropy
from lightning_hypernet.generator import NoisyGenerator, WeightDistribution
from lightning_hypernet.generator.distribution import Density
from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.population import Population
from lightning_hypernet.values import choice, real, switch, whole

_PRIORS = {"normal": Normal, "laplace": Laplace, "cauchy": Cauchy}


class KL(DiversityLoss):
    r"""Divergence of the networks from a prior of their weights, for each of N training examples, in nats.

    .. math:: \frac{1}{N} \mathbb{E} [\log q(\theta) - \log p(\theta)]

    Where `training_step` returns the mean negative log-likelihood of examples, the sum of both is minus the evidence lower
    bound over N: variational inference. Another weight than 1 tempers it.

    What stands for log q follows from the weight distribution: its closed form where it has one; the density of the weights
    drawn; the mixture of the densities given the z of the whole population, which bounds it (``"noisy"``); and where there is
    no density minus the Kozachenko-Leonenko estimate of the entropy on the manifold of z, without its constants.

    With ``bound="iwae"`` the sum is minus the importance-weighted bound of K networks over N instead, which is tighter:

    .. math:: \frac{1}{N} \mathbb{E} \log \frac{1}{K} \sum_k w_k, \qquad
        \log w_k = -N L_k + \log p(\theta_k) - \log q(\theta_k)

    with the loss L of each network. It is right where every network sees the whole batch, and the batch is the data or stands
    for them: pass ``deal=`` a function such as ``lambda batch, n: [batch] * n``. Another weight than 1 mixes the bound with
    the mean loss.

    `stl` leaves out of the gradient the term of mean zero that comes from the parameters of log q itself; its variance
    vanishes where q is the posterior. With K > 1 these are the doubly reparameterised gradients, which cost a second backward
    pass through the networks.

    References:
        | Weight Uncertainty in Neural Networks (Blundell et al., 2015), https://arxiv.org/abs/1505.05424
        | Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
        | Sticking the Landing (Roeder, Wu and Duvenaud, 2017), https://arxiv.org/abs/1703.09194
        | Semi-Implicit Variational Inference (Yin and Zhou, 2018), https://arxiv.org/abs/1805.11183
        | Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al., 2019)
        | https://arxiv.org/abs/1810.04152

    Args:
        prior: Of every weight, around 0: ``"normal"``, ``"laplace"`` or ``"cauchy"``.
        prior_scale: Its scale; of a normal one the standard deviation.
        bound: ``"elbo"`` or ``"iwae"``.
        k: Networks in an importance-weighted bound, of which a step takes the mean over as many groups as there are; None: all.
        stl: Whether gradients stick the landing.
        examples: N; None: the callback counts them.
        warmup: Training batches over which the divergence grows from 0.

    Raises:
        ValueError: If a value is out of range, or the weights have no density where one is needed.
    """

    default_weight = 1.0

    def __init__(
        self,
        prior: Literal["normal", "laplace", "cauchy"] = "normal",
        prior_scale: float = 1.0,
        bound: Literal["elbo", "iwae"] = "elbo",
        k: int | None = None,
        stl: bool = False,
        examples: int | None = None,
        warmup: int = 0,
    ) -> None:
        super().__init__()
        self.prior = choice("prior", prior, tuple(_PRIORS))
        self.prior_scale = real("prior_scale", prior_scale, 0, above=True)
        self.bound, self.stl = choice("bound", bound, ("elbo", "iwae")), switch("stl", stl)
        self.k = None if k is None else whole("k", k)
        if self.k is not None and self.bound == "elbo":
            raise ValueError(f"k={self.k} is of an importance-weighted bound: set bound='iwae'")
        self.given = None if examples is None else whole("examples", examples)
        self.examples = self.given
        self.warmup, self.steps = whole("warmup", warmup, 0), 0
        self.reads_outputs = self.bound == "iwae"

    def get_extra_state(self) -> dict[str, int]:
        """The number of steps."""
        return {"steps": self.steps}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        """Continue the warm-up of a checkpoint."""
        self.steps = whole("the steps of kl", state["steps"], 0)

    def check(self, distribution: type[WeightDistribution], dealt: bool) -> None:
        """See that weights have the density that is needed, and networks losses of their own.

        Raises:
            ValueError: If not.
        """
        kind = distribution.density
        if self.stl and kind != "exact":
            raise ValueError(
                f"kl with stl=True needs weights whose density is known exactly, and {distribution.__name__}'s is "
                f"{'not known' if kind == 'none' else kind}: take distribution='mean_field', 'low_rank', 'full' or 'flow'"
            )
        if self.bound == "iwae" and kind not in ("exact", "bound"):
            raise ValueError(
                f"kl with bound='iwae' needs weights whose density is known, and {distribution.__name__}'s is "
                f"{'not known' if kind == 'none' else 'known given z alone'}: take distribution='mean_field' or the like"
            )
        if self.bound == "iwae" and not dealt:
            raise ValueError(
                "kl with bound='iwae' needs the loss of every network on the whole batch: pass deal= a function of a batch and "
                "a number n of networks, which gives [batch] * n"
            )

    def see_data(self, examples: int | None) -> None:
        """Take the number of training examples, unless it was given."""
        self.examples = examples if self.given is None else self.given

    def forward(self, population: Population) -> Tensor:
        """Map a population to the divergence for an example, in nats; under ``"iwae"`` to the bound less the mean loss.

        Raises:
            ValueError: If the number of examples or the losses of networks are not known, or k does not divide the networks.
        """
        if self.examples is None:
            raise ValueError("how many training examples there are is not known: give it as {'kl': {'examples': n}}")
        distribution, latents = population.distribution, population.latents
        if distribution is None:
            raise ValueError("the population does not know its weight distribution, as those of hypernet.sample do")
        with torch.autocast(latents.z.device.type, enabled=False):
            return self._measured(distribution, population)

    def _measured(self, distribution: WeightDistribution, population: Population) -> Tensor:
        share = min(1.0, (self.steps + 1) / self.warmup) if self.warmup else 1.0
        self.steps += 1
        assert self.examples is not None
        weights = population.weights
        log_prior = self.log_prior(distribution.coordinates(weights))
        if self.bound == "elbo":
            return share * (self._log_density(distribution, population) - log_prior).mean() / self.examples
        divergences = share * (self._drawn(distribution, population.latents, weights) - log_prior)
        return self._importance_weighted(population, divergences)

    def log_prior(self, coordinates: Tensor) -> Tensor:
        """The log prior of random numbers ``(S, numbers)``, ``(S,)``, in nats."""
        numbers = coordinates.to(torch.promote_types(coordinates.dtype, torch.float32))
        make: Callable[..., Distribution] = _PRIORS[self.prior]
        density: Tensor = make(numbers.new_zeros(()), numbers.new_tensor(self.prior_scale)).log_prob(numbers).sum(1)
        return density

    def _log_density(self, distribution: WeightDistribution, population: Population) -> Tensor:
        """What stands for log q, ``(S,)`` or a scalar."""
        latents, weights = population.latents, population.weights
        if distribution.density == "none":
            vectors = [value.reshape(len(value), -1) for value in weights.values()]
            return -entropy(vectors, latents.z.shape[1])
        if isinstance(distribution, NoisyGenerator):
            return distribution.log_mixture(latents, weights)
        exact = None if self.stl else distribution.entropy()
        return self._drawn(distribution, latents, weights) if exact is None else -exact

    def _drawn(self, distribution: WeightDistribution, latents: Latents, weights: Mapping[str, Tensor]) -> Tensor:
        """The log density of the weights drawn, ``(S,)``."""
        density = Density(distribution)
        return density.held(latents, weights) if self.stl else density(latents, weights)

    def _importance_weighted(self, population: Population, divergences: Tensor) -> Tensor:
        """Minus the importance-weighted bound over N, less the mean loss."""
        losses, count = population.losses, self.k or len(population)
        if losses is None or len(losses) != len(population):
            raise ValueError("bound='iwae' needs the loss of every network: the callback's deal= makes them")
        if len(population) % count:
            raise ValueError(f"k={count} networks in a bound do not divide the samples={len(population)} of a step")
        assert self.examples is not None
        log_weights = (-self.examples * losses - divergences).view(-1, count)
        bound = (log_weights.logsumexp(1) - math.log(count)).mean() / self.examples
        if not self.stl or not bound.requires_grad:
            return -bound - losses.mean()
        return -bound - self._doubled(population, bound, log_weights.detach().softmax(1).flatten()) - losses.mean()

    @staticmethod
    def _doubled(population: Population, bound: Tensor, shares: Tensor) -> Tensor:
        """A term that is 0, whose gradient makes that of the weights of each network the square of its share."""
        weights = list(population.weights.values())
        gradients = torch.autograd.grad(bound, weights, retain_graph=True, allow_unused=True)
        total = bound.new_zeros(())
        for value, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                scaled = (shares - 1).view(-1, *[1] * (value.ndim - 1)) * gradient
                total = total + ((value - value.detach()) * scaled).sum()
        return total
