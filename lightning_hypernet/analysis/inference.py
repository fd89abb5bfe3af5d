"""Inference: networks for new data, the posterior of z with the generator held as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_hypernet.analysis.batches import labelled
from lightning_hypernet.analysis.evidence import effective_size, log_likelihood, of_each
from lightning_hypernet.analysis.nuts import check_pyro, draw_by_nuts
from lightning_hypernet.analysis.variational import Family, Variational
from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.latent_space import LatentSpace, drawn
from lightning_hypernet.population import Population
from lightning_hypernet.search.latents import search
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.values import choice, instance, real, unknown, whole

Method = Literal["resample", "map", "variational", "nuts"]
_CHUNK = 500


@dataclass(frozen=True, eq=False)
class Posterior:
    """Networks for new data.

    Args:
        population: The networks, each as likely as the others; of ``"map"`` the most likely first.
        method: What found them.
        diagnostics: What tells how far they are to be trusted, by name; see `infer`.
        path: What was maximised, at every step; None where nothing was.
    """

    population: Population
    method: str
    diagnostics: Mapping[str, float]
    path: Tensor | None = None


def infer(
    hypernet: Hypernet,
    data: Iterable[Any] | tuple[Tensor, Tensor],
    method: Method = "resample",
    likelihood: Callable[[Tensor, Tensor], Tensor] = log_likelihood,
    draws: int = 100,
    component: int | None = None,
    context: Tensor | None = None,
    seed: int = 0,
    **options: Any,
) -> Posterior:
    r"""Draw networks from the posterior of z for new data, the generator held as it is.

    .. math:: p(z | D) \propto p(z) \prod_n p(y_n | x_n, G(z))

    =================== ==================================================================== ==================================
    method              what it does, and its options                                        diagnostics
    =================== ==================================================================== ==================================
    ``"resample"``      draws again, in proportion to their likelihood, of ``pool=10_000``   ``effective_size`` of the pool;
                        networks of the prior, which needs no density                        ``log_evidence``
    ``"map"``           climbs to the nearest maximum from every one of as many draws of     ``log_joint`` of the best
                        the prior: ``steps=300``, ``lr=0.05``
    ``"variational"``   fits a distribution by the evidence lower bound:                     ``elbo``; ``log_evidence`` and
                        ``family="gaussian"`` of any covariance, ``"mean_field"`` or         ``effective_size`` by importance
                        ``"flow"`` (zuko's), ``steps=1000``, ``lr=0.03``, ``samples=16``     weights
    ``"nuts"``          Hamiltonian Monte Carlo, pyro's, in the coordinates of a fitted      ``r_hat``, the largest;
                        Gaussian, from starts twice as wide: ``warmup=200``, ``chains=2``,   ``effective_size``, the least;
                        one after the other, ``depth=8`` of a tree at most; ``steps=300``    ``divergences``
                        and ``lr=0.05`` of the fit
    =================== ==================================================================== ==================================

    A posterior of several modes suits ``"resample"``, if the pool reaches them. What needs a density of z works in the space
    that is mapped onto the prior's support. A prior of several components needs one of them but for ``"resample"`` and
    ``"map"``.

    References:
        | piVAE: a stochastic process prior for Bayesian deep learning with MCMC (Mishra et al., 2020)
        | https://arxiv.org/abs/2002.06873
        | The No-U-Turn Sampler (Hoffman and Gelman, 2014), https://arxiv.org/abs/1111.4246

    Args:
        hypernet: The Hypernet.
        data: A pair of inputs and targets, or batches ``(inputs, targets)`` that hold all of the data.
        method: As above.
        likelihood: The log likelihood of every example, ``(batch,)``, of the outputs of one network and the targets.
        draws: How many networks are returned.
        component: Of z; None: any.
        context: The condition, as of `Hypernet.sample`, ``(context_dim,)``.
        seed: Of all draws.
        options: Of the method.

    Returns:
        The networks, which ``hypernet.ensemble(posterior.population)`` makes an ensemble of, and diagnostics.

    Raises:
        TypeError: If something is not what it must be.
        ValueError: If a number is out of range, an option unknown, a package missing, or the likelihood gives no number for
            every example.
    """
    instance("hypernet", hypernet, Hypernet, "a Hypernet")
    choice("method", method, get_args(Method))
    run, defaults = _METHODS[method]
    if wrong := unknown(f"method={method!r}", options, list(defaults)):
        raise ValueError(wrong)
    task = _Task(hypernet, data, likelihood, whole("draws", draws), component, context, whole("seed", seed, None))
    if method in ("variational", "nuts") and hypernet.components > 1 and component is None:
        raise ValueError(f"method={method!r} is of one component, and the prior has {hypernet.components}: set component")
    with evaluating(hypernet), torch.inference_mode(False):
        return run(task, **{**defaults, **options})


class _Task:
    """Data to infer networks for.

    Args:
        hypernet: The Hypernet.
        data: As of `infer`.
        likelihood: As of `infer`.
        draws: As of `infer`.
        component: As of `infer`.
        context: As of `infer`.
        seed: As of `infer`.
    """

    def __init__(
        self, hypernet: Hypernet, data: Any, likelihood: Callable[[Tensor, Tensor], Tensor], draws: int,
        component: int | None, context: Tensor | None, seed: int,
    ) -> None:  # fmt: skip
        pair = isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(one, Tensor) for one in data)
        self.batches = list(labelled([data] if pair else data, hypernet.members.device))
        self.hypernet, self.likelihood, self.count = hypernet, likelihood, draws
        self.component, self.context, self.seed = component, context, seed
        self._one = self.latents(1)

    def latents(self, n: int, seed: int = 0) -> Latents:
        """Draw n latents of the prior."""
        return drawn(self.hypernet, n, self.seed + seed, self.component, self.context)

    def log_likelihood(self, population: Population) -> Tensor:
        """Of all data, of every network, ``(S,)``."""
        total = population.latents.z.new_zeros(len(population))
        for inputs, targets in self.batches:
            values = [of_each(self.likelihood, outputs, targets) for outputs in self.hypernet.run(population, inputs)]
            total = total + torch.stack(values).sum(1)
        return total

    def log_joint(self, space: LatentSpace, u: Tensor) -> Tensor:
        """Of the data and free numbers u ``(S, numbers)``, ``(S,)``, in nats."""
        like = self.like(len(u))
        inner = self.log_likelihood(space.decode(u, like))
        return inner + space.log_prob(u, like) + space.log_volume(u)

    def like(self, n: int) -> Latents:
        """Latents whose component and condition are those asked for."""
        return self._one[torch.zeros(n, dtype=torch.long, device=self._one.z.device)]

    def decode(self, latents: Latents) -> Population:
        """The networks, without gradients."""
        with torch.no_grad():
            return self.hypernet.decode(latents.map(torch.Tensor.detach))


def _resample(task: _Task, pool: int) -> Posterior:
    latents = task.latents(whole("pool", pool))
    with torch.no_grad():
        parts = (latents[start : start + _CHUNK] for start in range(0, len(latents), _CHUNK))
        weights = torch.cat([task.log_likelihood(task.hypernet.decode(part)) for part in parts]).double().cpu()
    shares = weights.softmax(0)
    source = torch.Generator().manual_seed(task.seed)
    chosen = torch.multinomial(shares, task.count, replacement=True, generator=source)
    population = task.decode(latents[chosen.to(latents.z.device)])
    return Posterior(population, "resample", _weighed(weights))


def _map(task: _Task, steps: int, lr: float) -> Posterior:
    found = search(
        task.hypernet, task.log_likelihood, task.count, steps, lr, noise=0.0, prior_weight=1.0,
        component=task.component, context=task.context, seed=task.seed,
    )  # fmt: skip
    joint = found.values.double() + task.hypernet.prior.log_prob(found.population.latents).detach().double().cpu()
    order = joint.argsort(descending=True)
    population = found.population[order.to(found.population.latents.z.device)]
    return Posterior(population, "map", {"log_joint": float(joint.max())}, found.path[:, order])


def _fitted(
    task: _Task, space: LatentSpace, family: Family, steps: int, lr: float, samples: int, source: torch.Generator
) -> tuple[Variational, Tensor]:
    """A distribution of free numbers that is fitted to the posterior, and the bound at every step."""
    steps, samples, lr = whole("steps", steps), whole("samples", samples), real("lr", lr, 0, above=True)
    path = []
    with torch.enable_grad():
        approximate = Variational(choice("family", family, get_args(Family)), space.free(task.latents(256)), task.seed)
        optimizer = Adam(approximate.parameters(), lr=lr)
        schedule = CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            u, density = approximate.draw(samples, source)
            bound = (task.log_joint(space, u) - density).mean()
            gradients = torch.autograd.grad(-bound, list(approximate.parameters()))
            for parameter, gradient in zip(approximate.parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
            path.append(bound.detach())
    return approximate, torch.stack(path).cpu()


def _variational(task: _Task, family: Family, steps: int, lr: float, samples: int) -> Posterior:
    space, source = LatentSpace(task.hypernet), torch.Generator().manual_seed(task.seed)
    approximate, path = _fitted(task, space, family, steps, lr, samples, source)
    with torch.no_grad():
        u, density = approximate.draw(task.count, source)
        weights = (task.log_joint(space, u) - density).double().cpu()
        population = task.decode(space.latents(u, task.like(len(u))))
    return Posterior(population, "variational", {"elbo": float(weights.mean()), **_weighed(weights)}, path)


def _nuts(task: _Task, warmup: int, chains: int, depth: int, steps: int, lr: float) -> Posterior:
    check_pyro()
    space, source = LatentSpace(task.hypernet), torch.Generator().manual_seed(task.seed)
    warmup, chains, depth = whole("warmup", warmup), whole("chains", chains), whole("depth", depth)
    fitted, _ = _fitted(task, space, "gaussian", steps, lr, 16, source)
    mean, factor = fitted.mean.detach(), fitted.factor().detach()
    start = 2 * torch.randn(chains, len(mean), generator=source, dtype=mean.dtype).to(mean)
    draws, diagnostics = draw_by_nuts(
        lambda e: task.log_joint(space, (mean + factor @ e)[None])[0],
        start,
        math.ceil(task.count / chains),
        warmup,
        depth,
        task.seed,
    )
    chosen = torch.randperm(len(draws), generator=source)[: task.count].to(draws.device)
    u = mean + draws[chosen] @ factor.T
    return Posterior(task.decode(space.latents(u, task.like(len(u)))), "nuts", diagnostics)


def _weighed(weights: Tensor) -> dict[str, float]:
    """What importance weights tell, given their logarithms."""
    evidence = float(weights.logsumexp(0) - math.log(len(weights)))
    return {"log_evidence": evidence, "effective_size": effective_size(weights)}


_METHODS: dict[str, tuple[Callable[..., Posterior], dict[str, Any]]] = {
    "resample": (_resample, {"pool": 10_000}),
    "map": (_map, {"steps": 300, "lr": 0.05}),
    "variational": (_variational, {"family": "gaussian", "steps": 1000, "lr": 0.03, "samples": 16}),
    "nuts": (_nuts, {"warmup": 200, "chains": 2, "depth": 8, "steps": 300, "lr": 0.05}),
}
