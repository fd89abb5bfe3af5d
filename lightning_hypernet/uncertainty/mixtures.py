"""Mixtures of Gaussians, one a member, evenly weighted: density, distribution, quantiles and scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_HALVINGS = 64


def log_density(targets: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    r"""The log density of an even mixture of Gaussians, in nats.

    .. math:: \log \frac1M \sum_m \mathcal N(y; \mu_m, \sigma_m^2)

    Args:
        targets: ``(...)``.
        means: ``(members, ...)``.
        variances: ``(members, ...)``, positive.

    Returns:
        ``(...)``.
    """
    each = -0.5 * ((targets - means).square() / variances + variances.log() + math.log(2 * math.pi))
    return each.logsumexp(0) - math.log(len(means))


def moments(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The mean of a mixture, and its variance within members and between them.

    .. math:: \operatorname{Var} y = \frac1M \sum_m \sigma_m^2 + \frac1M \sum_m (\mu_m - \bar\mu)^2

    Args:
        means: ``(members, ...)``.
        variances: ``(members, ...)``.

    Returns:
        Mean, variance within, variance between, each ``(...)``.
    """
    mean = means.mean(0)
    return mean, variances.mean(0), (means - mean).square().mean(0)


def distribution(values: Tensor, means: Tensor, variances: Tensor, below: bool = False) -> Tensor:
    """The share of a mixture at or `below` values, shapes as in `log_density`; a variance of 0 is a point."""
    away, spread = values - means, variances.sqrt()
    steps = ((away > 0) if below else (away >= 0)).to(away)
    smooth: Tensor = torch.special.ndtr(away / spread.clamp(min=_tiny(spread)))
    shares = torch.where(spread > 0, smooth, steps)
    return shares.mean(0)


def quantile(level: float, means: Tensor, variances: Tensor) -> Tensor:
    """The least value below or at which a share of a mixture lies, by halving between the members' own quantiles.

    Args:
        level: The share, between 0 and 1.
        means: ``(members, ...)``.
        variances: ``(members, ...)``; 0 is a point.

    Returns:
        ``(...)``.
    """
    own: Tensor = means + variances.sqrt() * torch.special.ndtri(torch.tensor(level, dtype=torch.float64)).to(means)
    low, high = own.amin(0), own.amax(0)
    for _ in range(_HALVINGS):
        middle = low + (high - low) / 2
        below = distribution(middle, means, variances) < level
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high


def crps(targets: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    r"""The continuous ranked probability score of an even mixture of Gaussians, in the targets' units.

    .. math:: \int (F(t) - 1\{t \ge y\})^2\, dt = \frac1M \sum_m A(y - \mu_m, \sigma_m^2)
        - \frac{1}{2 M^2} \sum_{m,n} A(\mu_m - \mu_n, \sigma_m^2 + \sigma_n^2)

    with :math:`A(\mu, \sigma^2) = 2 \sigma \varphi(\mu/\sigma) + \mu\, (2 \Phi(\mu/\sigma) - 1)`, the mean of the distance from
    0. One Gaussian has its own score, and variances of 0 give that of the samples `means`.

    References:
        The continuous ranked probability score for circular variables and its application to mesoscale forecast ensemble
        verification (Grimit et al., 2006)

    Args:
        targets: ``(...)``.
        means: ``(members, ...)``.
        variances: ``(members, ...)``, 0 or more.

    Returns:
        ``(...)``.
    """
    between = torch.zeros_like(means[0])
    for mean, variance in zip(means, variances, strict=True):
        between = between + _distance(means - mean, variances + variance).mean(0)
    return _distance(targets - means, variances).mean(0) - between / (2 * len(means))


def sample_crps(targets: Tensor, samples: Tensor) -> Tensor:
    r"""The continuous ranked probability score of samples, in the targets' units.

    .. math:: \frac1M \sum_m |x_m - y| - \frac{1}{2 M^2} \sum_{m,n} |x_m - x_n|

    References:
        | Strictly Proper Scoring Rules, Prediction, and Estimation (Gneiting and Raftery, 2007)
        | https://doi.org/10.1198/016214506000001437

    Args:
        targets: ``(...)``.
        samples: ``(members, ...)``.

    Returns:
        ``(...)``.
    """
    count = len(samples)
    ranks = torch.arange(1 - count, count, 2).to(samples).reshape(-1, *[1] * targets.ndim)
    return (samples - targets).abs().mean(0) - (ranks * samples.sort(0).values).sum(0) / count**2


def _distance(mean: Tensor, variance: Tensor) -> Tensor:
    """The mean distance of a Gaussian from 0."""
    spread = variance.sqrt()
    ratio = mean / spread.clamp(min=_tiny(spread))
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    return 2 * spread * density + mean * torch.erf(ratio / math.sqrt(2))


def _tiny(values: Tensor) -> float:
    return torch.finfo(values.dtype).tiny
