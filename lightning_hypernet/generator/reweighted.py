"""ReweightedPrior: a prior that prefers the latents of good networks, by a classifier between them and the prior's own."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from lightning_hypernet.generator.latents import PRIORS, DistributionPrior, Latents, Prior
from lightning_hypernet.registry import made
from lightning_hypernet.values import choice, guess, instance, real, switch, whole

_WIDEST = 4096
_FEWEST = 10
_BATCH = 512
_HELD_OUT = 0.2
_EVERY = 20
_CONTRAST = 4096
_KNOWN = 2**14
"""Draws of the base, of each component, from which Z is estimated."""


@dataclass(frozen=True)
class PriorFit:
    """How a classifier between good latents and the base's was fitted.

    Args:
        loss: Its cross-entropy on good latents and draws that it was not fitted to, in nats; log 2 of one that cannot tell.
        step: The training step with the least of it, whose weights are kept; 0 if none was better than the start.
        share: Effective share of the base's draws under the ratio r, E[r]^2 / E[r^2], 1 where all are alike. Times
            ``candidates`` it is how many candidates one draw is chosen from, in effect.
    """

    loss: float
    step: int
    share: float


class ReweightedPrior(Prior):
    r"""Another prior, its base, times a ratio that a classifier learns: higher where good networks come from.

    .. math:: p(z | c) = \frac{r(z, c)\, p_{\mathrm{base}}(z | c)}{Z_c}, \qquad \log r = D(z, c), \qquad
        \min_D \; -\mathbb{E}_{\mathrm{good}} \log \sigma(D) - \mathbb{E}_{\mathrm{base}} \log \sigma(-D)

    D is a network of two hidden layers whose last layer starts at zero. Until `fit` the prior is its base, to the bit, and a
    Hypernet trains as it would with that; `fit` afterwards, as `lightning_hypernet.analysis.reweight` does from a validation
    set. Components stay as frequent as they were, each with a Z of its own. The parameters of D need no gradient outside of
    `fit`, and what a fitted prior draws has none.

    A draw is chosen among `candidates` draws of the base, with probability in proportion to r (sampling-importance-resampling),
    which is exact as their number grows. Under ``method="langevin"`` it then takes Langevin steps, each accepted or refused
    by Metropolis and Hastings' rule, so that no step size falsifies the density and none leaves a base with bounds.

    This is the noise-contrastive prior of variational autoencoders, and not the "Noise Contrastive Priors" that make functions
    uncertain away from their data (Hafner et al., 2018).

    References:
        | A Contrastive Learning Approach for Training Variational Autoencoder Priors (Aneja et al., 2020)
        | https://arxiv.org/abs/2010.02917
        | Exponential Convergence of Langevin Distributions and their Discrete Approximations (Roberts and Tweedie, 1996)
        | https://doi.org/10.2307/3318418

    Args:
        latent_dim: Numbers in z.
        components: Number of components.
        base: The prior that is reweighted: a name, a mapping with the ``name`` and options, a `Prior`, or a distribution of
            torch. A Hypernet finds those of plug-ins by name too.
        hidden: Width of the classifier, at most 4,096.
        method: ``"resample"``, or ``"langevin"``, for which the base must know its density in all of space.
        candidates: Draws of the base from which one is chosen.
        steps: Langevin steps of each draw.
        step_size: Size of a Langevin step: the variance of its noise is twice this, in units of the base's variances.

    Raises:
        TypeError: If the base is no prior.
        ValueError: If a number is out of range, the base has another size, or its density cannot guide Langevin steps.

    Example:
        >>> prior = ReweightedPrior(2, base="uniform")
        >>> good = prior.draw(500)
        >>> good = good[good.z[:, 0] > 0]
        >>> fit = prior.fit(good)
        >>> bool((prior.draw(500).z[:, 0] > 0).float().mean() > 0.9)
        True
    """

    shift: Tensor
    scale: Tensor
    log_z: Tensor

    def __init__(
        self,
        latent_dim: int,
        components: int = 1,
        base: str | Mapping[str, Any] | Prior | Distribution = "normal",
        hidden: int = 64,
        method: str = "resample",
        candidates: int = 64,
        steps: int = 50,
        step_size: float = 0.1,
    ) -> None:
        super().__init__(latent_dim, components)
        self.method = choice("method", method, ("resample", "langevin"))
        self.candidates, self.steps = whole("candidates", candidates), whole("steps", steps)
        self.step_size = real("step_size", step_size, 0, above=True)
        if (hidden := whole("hidden", hidden)) > _WIDEST:
            raise ValueError(f"hidden must lie in 1 to {_WIDEST}, not {hidden}")
        self.base = _base(base, latent_dim, components)
        inputs = latent_dim + (components if components > 1 else 0)
        with self._seeded(f"{self.seed}-classifier"):
            self.classifier = nn.Sequential(
                nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
            )
        self.classifier.requires_grad_(False)
        for parameter in self.classifier[-1].parameters():
            parameter.zero_()
        self.register_buffer("shift", torch.zeros(components, latent_dim))
        self.register_buffer("scale", torch.ones(components, latent_dim))
        self.register_buffer("log_z", torch.zeros(components))
        self.fitted = False
        if self.method == "langevin":
            self._see_that_it_guides()

    def _see_that_it_guides(self) -> None:
        with self._seeded(f"{self.seed}-trial"), torch.no_grad():
            component = torch.arange(self.components, device=self._device).repeat_interleave(8)
            z = self.base.sample(component)
            away = z + (1 + 10 * z.abs().amax()) * torch.randn_like(z)
            try:
                values = self.base.log_prob(Latents(torch.cat([z, away]), component.repeat(2)))
            except (NotImplementedError, ValueError) as error:
                name = type(self.base).__name__
                raise ValueError(
                    f"method='langevin' needs a base that knows its density in all of space, and {name} does not: set "
                    f"method='resample' ({' '.join(str(error).split())[:80]})"
                ) from error
            if not values[: len(z)].isfinite().all():
                raise ValueError("method='langevin' needs a base whose draws have a finite log density: set method='resample'")

    def get_extra_state(self) -> dict[str, Any]:
        """Seed and number of draws, and whether the prior is fitted."""
        return {**super().get_extra_state(), "fitted": self.fitted}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue the random numbers of a checkpoint, bit for bit."""
        super().set_extra_state(state)
        self.fitted = switch("the prior's fitted", state["fitted"])

    def sample(self, component: Tensor) -> Tensor:
        """Draw a z for every component: ``(S,)`` integers to ``(S, latent_dim)``."""
        if not self.fitted:
            return self.base.sample(component)
        with _exactly(self._device):
            z = self._resampled(component)
            return self._moved(z, component) if self.method == "langevin" else z

    def renewed(self, latents: Latents) -> Latents:
        """The members' latents: those of the base until the prior is fitted, then drawn anew, with the same numbers always."""
        return super().renewed(latents) if self.fitted else self.base.renewed(latents)

    def log_prob(self, latents: Latents) -> Tensor:
        """Log density of latents, ``(S,)``, in nats.

        The constants Z are estimated once, in `fit`, from 16,384 draws of the base for each component: their relative
        error is about one over the root of that number times the `share` of the `PriorFit`.
        """
        known = self.base.log_prob(latents)
        return known + (self.log_ratio(latents) - self.log_z[latents.component]).to(known) if self.fitted else known

    def log_ratio(self, latents: Latents) -> Tensor:
        """The logit of the classifier, ``(S,)``: log r, in nats, up to a constant for each component; zero until `fit`."""
        component = latents.component
        z = (latents.z.to(self.shift) - self.shift[component]) / self.scale[component]
        if self.components > 1:
            z = torch.cat([z, F.one_hot(component, self.components).to(z)], 1)
        with torch.autocast(z.device.type, enabled=False):
            logit: Tensor = self.classifier(z)[:, 0]
        return logit

    def _resampled(self, component: Tensor) -> Tensor:
        """One of many candidates for each, the largest of log r plus Gumbel noise."""
        several = component.repeat_interleave(self.candidates)
        z = self.base.sample(several).to(component.device)
        shape = (len(component), self.candidates)
        noise = -torch.empty(shape, device="cpu").exponential_().log()
        logit = self.log_ratio(Latents(z, several)).view(shape)
        best = (logit + noise.to(logit)).argmax(1)
        return z.view(*shape, self.latent_dim)[torch.arange(len(z) // self.candidates, device=z.device), best]

    def _moved(self, z: Tensor, component: Tensor) -> Tensor:
        """Latents after the Langevin steps."""
        scale, size = self.scale[component].to(z), self.step_size
        value, slope = self._slope(z, component, scale)
        for _ in range(self.steps):
            noise = torch.randn(z.shape, device="cpu").to(z)
            bound = torch.rand(len(z), device="cpu").log().to(z)
            step = size * slope + math.sqrt(2 * size) * noise
            other = z + scale * step
            new_value, new_slope = self._slope(other, component, scale)
            there, back = noise.square().sum(1) / 2, (step + size * new_slope).square().sum(1) / (4 * size)
            taken = bound < new_value - value + there - back
            z, slope = (torch.where(taken[:, None], new, old) for new, old in ((other, z), (new_slope, slope)))
            value = torch.where(taken, new_value, value)
        return z

    def _slope(self, z: Tensor, component: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The log density up to a constant, ``(S,)``, and its gradient in units of the scale."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            latents = Latents(z, component)
            value = self.base.log_prob(latents) + self.log_ratio(latents).to(z)
            (slope,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), scale * slope

    def fit(
        self, good: Latents, weights: Tensor | None = None, steps: int = 500, lr: float = 3e-3, weight_decay: float = 0.1
    ) -> PriorFit:
        """Learn to tell good latents from the base's draws; a fit before this one is forgotten.

        A fifth of the good latents is held out, and the classifier kept is that with the least loss on them, from its start
        on, which is the base. The random numbers are the prior's own and the same for every fit.

        Args:
            good: Latents of good networks, ten or more, some of every component.
            weights: ``(S,)``, how much each of them counts; None: all alike.
            steps: Training steps.
            lr: Learning rate of AdamW, which falls to zero along a cosine.
            weight_decay: Of AdamW.

        Returns:
            How well they can be told apart.

        Raises:
            TypeError: If they are no latents.
            ValueError: If there are too few, they have another size, or numbers are out of range.
        """
        steps, lr, decay = whole("steps", steps), real("lr", lr, 0, above=True), real("weight_decay", weight_decay, 0)
        good, weights = self._checked(good, weights)
        with _exactly(self._device), self._seeded(f"{self.seed}-fit"):
            every = torch.arange(self.components, device=self._device).repeat_interleave(_KNOWN)
            known = Latents(self.base.sample(every).to(self.shift), every)
            before = copy.deepcopy(self.state_dict())
            try:
                self._standardise(known.z)
                loss, step = self._learn(good, weights, steps, lr, decay)
                logit = self.log_ratio(known).view(self.components, _KNOWN)
            except BaseException:
                self.load_state_dict(before)
                raise
            self.log_z.copy_(logit.logsumexp(1) - math.log(_KNOWN))
            self.fitted = True
            share = (2 * logit.logsumexp(1) - (2 * logit).logsumexp(1)).exp() / _KNOWN
            return PriorFit(loss, step, float(share.mean()))

    def _checked(self, good: Latents, weights: Tensor | None) -> tuple[Latents, Tensor]:
        instance("good", good, Latents, "Latents, as prior.draw(n) and population.latents are")
        if good.z.shape != (len(good), self.latent_dim):
            raise ValueError(f"good latents must be (n, {self.latent_dim}), not {tuple(good.z.shape)}")
        if len(good) < _FEWEST:
            raise ValueError(f"good latents must be {_FEWEST} or more, not {len(good)}: keep a larger share, or draw more")
        if not good.z.isfinite().all():
            raise ValueError("good latents must be finite, and these hold NaN or infinite numbers")
        given = torch.ones(len(good)) if weights is None else torch.as_tensor(weights)
        if given.shape != (len(good),) or not (given.isfinite().all() and (given >= 0).all() and given.sum() > 0):
            raise ValueError(f"weights must be {len(good)} numbers, 0 or more and not all 0, not of {tuple(given.shape)}")
        good = Latents(good.z.detach(), good.component).to(self.shift)
        present = good.component[given.to(good.z) > 0].unique().tolist()
        if present != list(range(self.components)):
            raise ValueError(f"good latents must be of every component, 0 to {self.components - 1}, not of {present} alone")
        return good, given.to(good.z)

    def _standardise(self, z: Tensor) -> None:
        z = z.view(self.components, _KNOWN, self.latent_dim)
        spread = z.std(1)
        self.shift.copy_(z.mean(1))
        self.scale.copy_(torch.where(spread > 0, spread, 1.0))

    def _learn(self, good: Latents, weights: Tensor, steps: int, lr: float, decay: float) -> tuple[float, int]:
        """Fit the classifier from new weights on; the least held-out loss, and its step."""
        for layer in self.classifier:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        for parameter in self.classifier[-1].parameters():
            parameter.zero_()
        order = torch.randperm(len(good), device="cpu").to(good.z.device)
        count = max(1, round(_HELD_OUT * len(good)))
        held, rest = order[:count], order[count:]
        contrast = self._contrast(good, weights, _CONTRAST)
        best, kept = (math.inf, 0), copy.deepcopy(self.classifier.state_dict())
        optimizer = torch.optim.AdamW(self.classifier.parameters(), lr=lr, weight_decay=decay)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps + 1):
            if step % _EVERY == 0 or step == steps:
                loss = float(self._loss(good[held], weights[held], contrast))
                if loss < best[0]:
                    best, kept = (loss, step), copy.deepcopy(self.classifier.state_dict())
            if step < steps:
                rows = rest[torch.randperm(len(rest), device="cpu")[:_BATCH].to(rest.device)]
                drawn = self._contrast(good, weights, _BATCH)
                with _learning(self.classifier):
                    self._loss(good[rows], weights[rows], drawn).backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
        self.classifier.load_state_dict(kept)
        return best

    def _contrast(self, good: Latents, weights: Tensor, n: int) -> Latents:
        """Draws of the base, of components as frequent as among the good."""
        component = good.component[torch.multinomial(weights.cpu(), n, replacement=True).to(good.z.device)]
        return Latents(self.base.sample(component).to(good.z), component)

    def _loss(self, good: Latents, weights: Tensor, contrast: Latents) -> Tensor:
        """Cross-entropy of the classifier, half of it from each side, in nats."""
        missed = (weights * F.softplus(-self.log_ratio(good))).sum() / weights.sum().clamp(min=1e-30)
        return (missed + F.softplus(self.log_ratio(contrast)).mean()) / 2


@contextmanager
def _exactly(device: torch.device) -> Iterator[None]:
    """Within, there is neither gradient nor autocast, and tensors are ordinary ones."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def _learning(module: nn.Module) -> Iterator[None]:
    """Within, the parameters of a module have gradients."""
    module.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        module.requires_grad_(False)


def _base(base: Any, latent_dim: int, components: int) -> Prior:
    """The prior that an argument stands for, of a given size."""
    if isinstance(base, Distribution):
        return DistributionPrior(latent_dim, components, base)
    if isinstance(base, (str, Mapping)):
        options = dict(base) if isinstance(base, Mapping) else {"name": base}
        name = options.pop("name", None)
        if name not in PRIORS:
            there = ", ".join(sorted(PRIORS))
            raise ValueError(f"base must be named {there}, or be a Prior, not {name!r}{guess(name, PRIORS)}")
        return made("prior", name, PRIORS[name], latent_dim, components, **options)  # type: ignore[no-any-return]
    instance("base", base, Prior, "a name, a mapping with a 'name' and options, a Prior or a distribution of torch")
    if (base.latent_dim, base.components) != (latent_dim, components):
        raise ValueError(
            f"the base draws {base.latent_dim} numbers for {base.components} components, and the prior has "
            f"latent_dim={latent_dim} and components={components}"
        )
    return base  # type: ignore[no-any-return]
