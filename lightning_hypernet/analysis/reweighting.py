"""Reweighting: a fitted prior that draws networks with a low loss on data that were not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_hypernet.analysis.batches import labelled
from lightning_hypernet.generator import Latents, PriorFit, ReweightedPrior
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.target.loaders import check_loader
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.values import instance, real, whole

Loss = Callable[[Tensor, Tensor], Tensor]
"""The mean loss of one network's outputs ``(batch, ...)`` and targets ``(batch, ...)``, a scalar."""
_CHUNK = 100
"""Networks that are there at once."""
_HALVINGS = 60


@dataclass(frozen=True)
class Reweighting:
    """What networks do on a loader before and after their prior was reweighted by it.

    Args:
        before: ``(draws,)``, the losses of networks of the base.
        weights: ``(draws,)``, how much each of these counts as good, with sum 1.
        after: ``(draws,)``, the losses of networks of the fitted prior.
        fit: How well the good latents can be told from others.
        disagreement_before: ``(draws,)``, on what share of the examples each network of the base names another class than
            another of them, on average; None if nobody asked.
        disagreement_after: Likewise of the fitted prior.
    """

    before: Tensor
    weights: Tensor
    after: Tensor
    fit: PriorFit
    disagreement_before: Tensor | None = None
    disagreement_after: Tensor | None = None

    @property
    def chosen(self) -> float:
        """The weighted mean loss of the base's networks: what a perfect classifier would give."""
        return float((self.weights * self.before.nan_to_num(posinf=0.0)).sum())

    @property
    def effective_size(self) -> float:
        """How many networks count, one over the sum of the squared weights."""
        return float(1 / self.weights.square().sum())

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw the histograms of the losses; returns figure and axes of matplotlib."""
        from matplotlib import pyplot

        figure, axes = (ax.figure, ax) if ax is not None else pyplot.subplots(layout="constrained")
        values = [one[one.isfinite()].numpy() for one in (self.before, self.after)]
        axes.hist(values, bins=40, density=True, label=["base", "reweighted"], color=["C0", "C1"])
        axes.set(xlabel="loss of a network", ylabel="density")
        axes.legend()
        return figure, axes


def reweight(
    hypernet: Hypernet,
    loader: Iterable[Any],
    draws: int = 2000,
    keep: float = 0.5,
    disagreement: float | None = None,
    loss: Loss = F.cross_entropy,
    context: Tensor | None = None,
) -> Reweighting:
    r"""Fit a Hypernet's `ReweightedPrior`, so that it draws networks like those with a low loss on a data set.

    Networks i are drawn from the base, and count with the weights

    .. math:: w_i \propto \exp(-\tau L_i + b\, d_i), \qquad \frac{1}{n \sum_i w_i^2} = \mathrm{keep}, \qquad
        \sum_i w_i d_i = \mathrm{disagreement} \cdot \frac1n \sum_i d_i,

    with their mean loss L, and their mean disagreement d with the others, which `b` keeps where this is asked (it is 0
    otherwise): of all weights with such means those nearest to even ones. Each component has its own. The classifier learns
    from latents and weights alone; afterwards nothing but the prior has changed, networks are drawn without data, and the
    members of evaluation are others. Take data that were not trained on, and report on others still: the losses returned are
    of the data that chose.

    References:
        | A Contrastive Learning Approach for Training Variational Autoencoder Priors (Aneja et al., 2020)
        | https://arxiv.org/abs/2010.02917

    Args:
        hypernet: A trained Hypernet with ``prior="reweighted"``.
        loader: Batches ``(inputs, targets)``, read several times.
        draws: Networks that are drawn before, and after.
        keep: Effective share of the networks that counts as good; the smaller, the lower the losses, and the more alike the
            networks.
        disagreement: Which share of their disagreement with the base's networks the good ones have; 1: all of it; among each
            other they may have somewhat less. None: it is not looked at, and networks disagree less as they err less. For
            outputs ``(batch, classes)``.
        loss: The mean loss of one network's outputs ``(batch, ...)`` and targets: mean cross-entropy by default.
        context: The condition of all, ``(context_dim,)``; None: zeros.

    Returns:
        The losses before and after.

    Raises:
        TypeError: If something is not what it must be.
        ValueError: If the Hypernet's prior is another, the loader is empty, the loss is no scalar, or a number is out of range.

    Example:
        >>> from torch import nn
        >>> hypernet = Hypernet(nn.Linear(4, 2), latent_dim=3, prior="reweighted").eval()
        >>> batches = [(torch.randn(64, 4), torch.randint(2, (64,)))]
        >>> found = reweight(hypernet, batches, draws=200)
        >>> round(found.effective_size)
        100
    """
    instance("hypernet", hypernet, Hypernet, "a Hypernet")
    prior = hypernet.prior
    if not isinstance(prior, ReweightedPrior):
        raise ValueError(
            f"the Hypernet's prior is a {type(prior).__name__}, which can't be reweighted: train with "
            "prior='reweighted', or prior={'name': 'reweighted', 'base': ...}, which trains as its base does"
        )
    draws, keep = whole("draws", draws, 2), real("keep", keep, 0, 1, above=True)
    share = None if disagreement is None else real("disagreement", disagreement, 0, above=True)
    check_loader(loader, again=True)
    if not callable(loss):
        raise TypeError(f"loss must be a function of outputs and targets, not {loss!r}")
    drawn = prior.base.draw(draws)
    before, differing = _scored(hypernet, drawn, loader, loss, context, share is not None)
    weights = torch.zeros(draws, dtype=torch.double)
    for one in drawn.component.unique():
        rows = (drawn.component == one).nonzero()[:, 0].cpu()
        weights[rows] = _weights(before[rows], None if differing is None else differing[rows], keep, share) * len(rows) / draws
    fit = prior.fit(drawn, weights)
    hypernet.members.forget()
    hypernet.settle_statistics()
    after, differing_after = _scored(hypernet, prior.draw(draws), loader, loss, context, share is not None)
    return Reweighting(before, weights, after, fit, differing, differing_after)


@torch.no_grad()
def _scored(
    hypernet: Hypernet, drawn: Latents, loader: Iterable[Any], loss: Loss, context: Tensor | None, differing: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss of every network, ``(S,)``, and where wanted its disagreement with the others, ``(S,)``."""
    given = drawn if context is None else drawn.given(torch.atleast_1d(context).to(drawn.z))
    totals, named = [], []
    with evaluating(hypernet):
        for first in range(0, len(given), _CHUNK):
            population = hypernet.decode(given[first : first + _CHUNK])
            total, count, classes = torch.zeros(len(population), dtype=torch.double), 0, []
            for inputs, targets in labelled(loader, population.latents.z.device):
                outputs = hypernet.run(population, inputs)
                total += torch.stack([_scalar(loss(one, targets)) for one in outputs]).double().cpu() * len(targets)
                count += len(targets)
                classes += [_named(outputs)] if differing else []
            totals.append(total / count)
            named += [torch.cat(classes, 1)] if differing else []
    values = torch.cat(totals).nan_to_num(nan=torch.inf, posinf=torch.inf)
    if not values.isfinite().any():
        raise ValueError("the loss of every network is NaN or infinite: check the loader and the loss")
    return values, _disagreement(torch.cat(named)) if differing else None


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss must give one number for a network, the mean over the batch, not {shape}")
    return value.detach().reshape(())


def _named(outputs: Tensor) -> Tensor:
    """The class that every network names for every example, ``(S, batch)``."""
    if outputs.ndim != 3 or outputs.shape[2] < 2:
        shape = tuple(outputs.shape[1:])
        raise ValueError(f"disagreement needs outputs (batch, classes), and a network's are {shape}: leave it None")
    return outputs.argmax(-1).cpu()


def _disagreement(named: Tensor) -> Tensor:
    """How often each network names another class than another network, ``(S,)``, of classes named ``(S, examples)``."""
    alike = torch.zeros(len(named), dtype=torch.double)
    for one in named.unique():
        votes = (named == one).double()
        alike += votes @ (votes.sum(0) - 1).clamp(min=0)
    return 1 - alike / (named.shape[1] * (len(named) - 1))


def _weights(losses: Tensor, differing: Tensor | None, keep: float, share: float | None) -> Tensor:
    """Weights of networks with sum 1, of an effective share, those of infinite losses 0."""
    possible = losses.isfinite()
    if not possible.any():
        return torch.full_like(losses, 1 / len(losses))
    loss = losses[possible]
    loss = (loss - loss.min()) / (loss.std(correction=0) + 1e-12)
    other = None if differing is None else differing[possible]
    spread = 0.0 if other is None else float(other.std(correction=0))

    def tilted(pace: float) -> Tensor:
        if other is None or share is None or not spread:
            return torch.softmax(-pace * loss, 0)
        offset, wanted = (other - other.mean()) / spread, share * float(other.mean())
        bound = 10 * (1 + pace)
        bonus = _where(lambda value: float(torch.softmax(value * offset - pace * loss, 0) @ other) < wanted, -bound, bound)
        return torch.softmax(bonus * offset - pace * loss, 0)

    pace = _where(lambda value: float(1 / tilted(value).square().sum()) > keep * len(losses), 0.0, 100.0)
    weights = torch.zeros_like(losses)
    weights[possible] = tilted(pace)
    return weights


def _where(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Up to where something holds, by halving."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
