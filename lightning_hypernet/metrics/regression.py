"""Metrics of several networks' predictions of numbers: errors, likelihood, ranked probability score, coverage, sharpness."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.metrics.base import Mean
from lightning_hypernet.uncertainty import mixtures
from lightning_hypernet.uncertainty.conformal import checked_level


class RegressionMetric(Mean):
    """The mean over examples and outputs of a score of the mixture that several networks predict.

    Means and variances are ``(members, batch, ...)``, targets ``(batch, ...)``: numbers, several for each example, or maps;
    they are what a `NumberPrediction` calls so. Without variances members predict points.
    """

    needs_variances = False

    def update(self, means: Tensor, targets: Tensor, variances: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            means: ``(members, batch, ...)``.
            targets: ``(batch, ...)``.
            variances: ``(members, batch, ...)``; None: members predict points.

        Raises:
            TypeError: If they are no tensors of real numbers.
            ValueError: If the shapes do not fit, there are no examples, numbers are NaN or infinite or variances not positive,
                or the metric needs variances.
        """
        given = [means, targets, *([] if variances is None else [variances])]
        if not all(isinstance(one, Tensor) for one in given):
            raise TypeError(
                f"means, targets and variances must be tensors, not {', '.join(type(one).__name__ for one in given)}"
            )
        if not all(one.is_floating_point() for one in given):
            raise TypeError(
                f"means, targets and variances must be real numbers, not {', '.join(str(one.dtype) for one in given)}"
            )
        if means.ndim < 2 or targets.shape != means.shape[1:] or (variances is not None and variances.shape != means.shape):
            raise ValueError(
                "means and variances must be (members, batch, ...) and targets (batch, ...), not "
                f"{', '.join(str(tuple(one.shape)) for one in (means, *given[2:], targets))}"
            )
        if not means.numel():
            raise ValueError(f"means (members, batch, ...) are empty: {tuple(means.shape)}")
        if not all(one.isfinite().all() for one in given):
            raise ValueError("means, targets or variances hold NaN or infinite numbers")
        if variances is None and self.needs_variances:
            raise ValueError(f"{type(self).__name__} is of densities, and points have none: pass variances=")
        if variances is not None and not bool((variances > 0).all()):
            raise ValueError("variances must be positive; leave them out for members that predict points")
        with torch.autocast(means.device.type, enabled=False):
            mean, wanted = means.detach().double(), targets.detach().double()
            spread = torch.zeros_like(mean) if variances is None else variances.detach().double()
            self.tally(self.score(mean, wanted, spread).flatten())

    @abstractmethod
    def score(self, means: Tensor, targets: Tensor, variances: Tensor) -> Tensor:
        """The score of every number, ``(batch, ...)``, in double precision; variances are 0 where members predict points."""


class EnsembleRMSE(RegressionMetric):
    """The root of the mean squared error of the mean, in the targets' units."""

    higher_is_better = False
    plot_lower_bound = 0.0

    def score(self, means: Tensor, targets: Tensor, variances: Tensor) -> Tensor:
        """The squared error of every number, ``(batch, ...)``."""
        return (means.mean(0) - targets).square()

    def compute(self) -> Tensor:
        """The root, a scalar."""
        return super().compute().sqrt()


class MemberRMSE(EnsembleRMSE):
    """The root of the mean over members of their mean squared error, in the targets' units."""

    def score(self, means: Tensor, targets: Tensor, variances: Tensor) -> Tensor:
        """The mean squared error of the members for every number, ``(batch, ...)``."""
        return (means - targets).square().mean(0)


class MixtureNLL(RegressionMetric):
    r"""Negative log-likelihood of an even mixture of Gaussians, in nats.

    .. math:: -\log \frac1M \sum_m \mathcal N(y; \mu_m, \sigma_m^2)

    References:
        | Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles (Lakshminarayanan et al., 2017)
        | https://arxiv.org/abs/1612.01474
    """

    higher_is_better = False
    needs_variances = True

    def score(self, means: Tensor, targets: Tensor, variances: Tensor) -> Tensor:
        """The score of every number, ``(batch, ...)``."""
        return -mixtures.log_density(targets, means, variances)


class CRPS(RegressionMetric):
    r"""Continuous ranked probability score, in the targets' units: of the mixture in closed form, or of points as samples.

    .. math:: \int (F(t) - 1\{t \ge y\})^2\, dt

    For one point it is its absolute error.

    References:
        | Strictly Proper Scoring Rules, Prediction, and Estimation (Gneiting and Raftery, 2007)
        | https://doi.org/10.1198/016214506000001437
        | The continuous ranked probability score for circular variables and its application to mesoscale forecast ensemble
          verification (Grimit et al., 2006)
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def score(self, means: Tensor, targets: Tensor, variances: Tensor) -> Tensor:
        """The score of every number, ``(batch, ...)``."""
        if not variances.any():
            return mixtures.sample_crps(targets, means)
        return mixtures.crps(targets, means, variances)


class Coverage(RegressionMetric):
    """Share of numbers in the middle part of the mixture that holds `level` of it; near the level where it is calibrated.

    Args:
        level: Between 0 and 1.
    """

    higher_is_better: bool | None = None
    plot_lower_bound = 0.0
    plot_upper_bound: float | None = 1.0

    def __init__(self, level: float = 0.9, **options: Any) -> None:
        super().__init__(**options)
        self.level = checked_level(level)

    def ends(self, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of the middle part, each ``(batch, ...)``."""
        outside = (1 - self.level) / 2
        return mixtures.quantile(outside, means, variances), mixtures.quantile(1 - outside, means, variances)

    def score(self, means: Tensor, targets: Tensor, variances: Tensor) -> Tensor:
        """1 for every number within, ``(batch, ...)``."""
        low, high = self.ends(means, variances)
        return ((targets >= low) & (targets <= high)).double()


class Sharpness(Coverage):
    """Width of the middle part of the mixture that holds `level` of it, in the targets' units.

    Of predictions that are calibrated, those are better that are narrower.

    References:
        | Probabilistic forecasts, calibration and sharpness (Gneiting et al., 2007)
        | https://doi.org/10.1111/j.1467-9868.2007.00587.x

    Args:
        level: Between 0 and 1.
    """

    higher_is_better = False
    plot_upper_bound = None

    def score(self, means: Tensor, targets: Tensor, variances: Tensor) -> Tensor:
        """The width for every number, ``(batch, ...)``."""
        low, high = self.ends(means, variances)
        return high - low


class MemberSpread(RegressionMetric):
    """Variance of the members' means, in squared units of the targets: how much they disagree; 0 for one."""

    higher_is_better = None
    plot_lower_bound = 0.0

    def score(self, means: Tensor, targets: Tensor, variances: Tensor) -> Tensor:
        """The variance for every number, ``(batch, ...)``."""
        return mixtures.moments(means, variances)[2]
