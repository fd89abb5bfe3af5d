"""Predictions: what members say together, and how sure they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.uncertainty import mixtures
from lightning_hypernet.uncertainty.conformal import Conformal, checked_level, class_scores
from lightning_hypernet.uncertainty.drawing import draw_band, draw_maps, draw_parts
from lightning_hypernet.uncertainty.temperature import log_mean, stretched, tempered


class Prediction(ABC):
    """What members say of a batch together.

    Attributes:
        conformal: The scores of conformal sets; None: there are none yet.
    """

    conformal: Conformal | None

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """The mean prediction."""

    @property
    @abstractmethod
    def total(self) -> Tensor:
        """The uncertainty, all of it: `aleatoric` + `epistemic`."""

    @property
    @abstractmethod
    def aleatoric(self) -> Tensor:
        """The uncertainty that members see themselves: noise of the data."""

    @property
    @abstractmethod
    def epistemic(self) -> Tensor:
        """The uncertainty about which member is right; 0 for one."""

    @abstractmethod
    def sets(self, level: float = 0.9) -> Any:
        """The conformal set of every example, which holds the truth with a probability of at least the level."""

    @abstractmethod
    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw it; returns figure and axes of matplotlib."""

    def __len__(self) -> int:
        return len(self.mean)

    def _threshold(self, level: float, like: Tensor) -> Tensor:
        if self.conformal is None:
            raise ValueError(
                "there are no scores for conformal sets: call ensemble.conform(loader) first, with data that "
                "nothing was fitted on"
            )
        return self.conformal.threshold(level).to(like)


class ClassPrediction(Prediction):
    r"""Of classes: probabilities, and entropies in nats.

    Calibrated, the mean probability is :math:`p_T \propto \bar p^{1/T}`, and each class keeps its shares of members,
    :math:`q(m, y) = p_T(y)\, p_m(y) / \sum_n p_n(y)`. Then

    .. math:: \underbrace{H[q(y)]}_{\text{total}} = \underbrace{H[q(y \mid m)]}_{\text{aleatoric}} + \underbrace{I[y; m]}_{
        \text{epistemic}},

    with none below 0. At T = 1 these are the entropy of the mean, the mean entropy and the mutual information.

    References:
        | Bayesian Active Learning for Classification and Preference Learning (Houlsby et al., 2011)
        | https://arxiv.org/abs/1112.5745
        | The Logic of Decision (Jeffrey, 1965), chapter 11, for the shares

    Args:
        log_members: ``(members, batch, ..., classes)``, log probabilities, at temperatures of the members' own.
        dim: Where the classes lie in `mean`.
        temperature: Of the mean.
        conformal: Scores of conformal sets.
    """

    def __init__(self, log_members: Tensor, dim: int = 1, temperature: float = 1.0, conformal: Conformal | None = None) -> None:
        self.log_members, self.dim, self.temperature, self.conformal = log_members, dim, temperature, conformal

    @cached_property
    def log_mean(self) -> Tensor:
        """The log of the mean probability, ``(batch, ..., classes)``."""
        return tempered(log_mean(self.log_members), self.temperature)

    @property
    def members(self) -> Tensor:
        """The probabilities that members give, before the temperature of their mean: ``(members, batch, classes, ...)``."""
        return self.log_members.exp().movedim(-1, self.dim if self.dim < 0 else self.dim + 1)

    @property
    def mean(self) -> Tensor:
        """The mean probability of every class, ``(batch, classes, ...)``, the classes where the outputs have them."""
        return self.log_mean.exp().movedim(-1, self.dim)

    @property
    def label(self) -> Tensor:
        """The most probable class, ``(batch, ...)``."""
        return self.log_mean.argmax(-1)

    @property
    def confidence(self) -> Tensor:
        """Its probability, ``(batch, ...)``."""
        return self.log_mean.amax(-1).exp()

    @cached_property
    def total(self) -> Tensor:
        """The entropy of the mean, ``(batch, ...)``, in nats."""
        return _entropy(self.log_mean)

    @cached_property
    def aleatoric(self) -> Tensor:
        """The mean entropy of the members, ``(batch, ...)``, in nats."""
        if len(self.log_members) == 1:
            return self.total
        if self.temperature == 1:
            return torch.minimum(_entropy(self.log_members).mean(0), self.total)
        before = log_mean(self.log_members)
        tilt = torch.where(before.isinf(), 0.0, self.log_mean - before)
        joint = self.log_members + tilt
        weights = joint.logsumexp(-1).softmax(0)
        return torch.minimum((weights * _entropy(joint.log_softmax(-1))).sum(0), self.total)

    @property
    def epistemic(self) -> Tensor:
        """The mutual information of label and member, ``(batch, ...)``, in nats."""
        return self.total - self.aleatoric

    def sets(self, level: float = 0.9) -> Tensor:
        """Which classes belong to the conformal set of every example, ``(batch, classes, ...)``, boolean.

        Args:
            level: The probability with which a set holds the label, at least, on average over examples.

        Raises:
            ValueError: If there are no scores yet, or the level is not between 0 and 1.
        """
        probabilities = self.log_mean.exp()
        bound = self._threshold(level, probabilities)
        assert self.conformal is not None
        return (class_scores(probabilities, self.conformal.kind) <= bound).movedim(-1, self.dim)

    def plot(self, ax: Any = None, index: int = 0) -> tuple[Any, Any]:
        """Draw both parts of the uncertainty of every example, or of maps label and uncertainties of one.

        Args:
            ax: Axes of matplotlib; of maps they take the total alone.
            index: Which example, of maps.

        Returns:
            Figure and axes, of maps an array of four.
        """
        if self.label.ndim == 3:
            parts = {name: getattr(self, name)[index] for name in ("label", "total", "aleatoric", "epistemic")}
            return draw_maps(parts, "nats", ax)
        return draw_parts(self.aleatoric.flatten(), self.epistemic.flatten(), "entropy, nats", ax)


class NumberPrediction(Prediction):
    r"""Of numbers: an even mixture of Gaussians, one a member; uncertainties are variances.

    .. math:: \underbrace{\operatorname{Var} y}_{\text{total}} = \underbrace{\tfrac1M \sum_m \sigma_m^2}_{\text{aleatoric}} +
        \underbrace{\tfrac1M \sum_m (\mu_m - \bar\mu)^2}_{\text{epistemic}}

    Calibrated, every distance from the mean is :math:`\sqrt T` times as large, and so is the total T times as large.

    References:
        | Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles (Lakshminarayanan et al., 2017)
        | https://arxiv.org/abs/1612.01474

    Args:
        means: ``(members, batch, ...)``.
        variances: ``(members, batch, ...)``; zeros where the outputs are means alone, whose aleatoric uncertainty is not known.
        temperature: T.
        conformal: Scores of conformal sets.
    """

    def __init__(self, means: Tensor, variances: Tensor, temperature: float = 1.0, conformal: Conformal | None = None) -> None:
        self.means, self.variances = stretched(means, variances, temperature)
        self._mean = means.mean(0)  # not of those stretched, which round
        self.temperature, self.conformal = temperature, conformal

    @property
    def mean(self) -> Tensor:
        """The mean, ``(batch, ...)``."""
        return self._mean

    @property
    def total(self) -> Tensor:
        """The variance, ``(batch, ...)``."""
        return self.aleatoric + self.epistemic

    @property
    def std(self) -> Tensor:
        """Its root, ``(batch, ...)``, in the targets' units."""
        return self.total.sqrt()

    @cached_property
    def aleatoric(self) -> Tensor:
        """The mean variance of the members, ``(batch, ...)``."""
        return self.variances.mean(0)

    @cached_property
    def epistemic(self) -> Tensor:
        """The variance of the members' means, ``(batch, ...)``."""
        return (self.means - self._mean).square().mean(0)

    def quantile(self, level: float) -> Tensor:
        """The value at or below which a share of the mixture lies, ``(batch, ...)``."""
        return mixtures.quantile(checked_level(level), self.means, self.variances)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """The ends of the middle part of the mixture, each ``(batch, ...)``, which holds as much of it as the level says."""
        outside = (1 - checked_level(level)) / 2
        return tuple(mixtures.quantile(share, self.means, self.variances) for share in (outside, 1 - outside))  # type: ignore[return-value]

    def sets(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """The ends of the conformal interval of every number, each ``(batch, ...)``, around the mean.

        Args:
            level: The probability with which an interval holds the number, at least, on average over examples; infinite ones
                where there are too few scores for it.

        Raises:
            ValueError: If there are no scores yet, or the level is not between 0 and 1.
        """
        bound = self._threshold(level, self.mean)
        bound = bound.reshape(-1, *[1] * (self.mean.ndim - 2)) if self.mean.ndim > 1 else bound
        assert self.conformal is not None
        half = bound * self.std if self.conformal.kind == "scaled" else bound.expand_as(self.mean)
        return self.mean - half, self.mean + half

    def plot(self, ax: Any = None, x: Tensor | None = None, level: float = 0.9, index: int = 0) -> tuple[Any, Any]:
        """Draw the mean and its interval over the examples, or of maps mean and uncertainties of one.

        Args:
            ax: Axes of matplotlib; of maps they take the total alone.
            x: Where the examples lie, ``(batch,)``; None: in a row.
            level: Of the interval: the conformal one if there are scores, else that of the mixture.
            index: Which example, of maps.

        Returns:
            Figure and axes, of maps an array of four.
        """
        if self.mean.ndim > 2:
            names = ("mean", "total", "aleatoric", "epistemic")
            return draw_maps(
                {name: getattr(self, name)[index].reshape(-1, self.mean.shape[-1]) for name in names}, "variance", ax
            )
        ends = self.interval(level) if self.conformal is None else self.sets(level)
        return draw_band(self.mean, *ends, x, f"{100 * level:g} %", ax)


def _entropy(logs: Tensor) -> Tensor:
    """The entropy over the last axis of log probabilities."""
    each: Tensor = torch.special.entr(logs.exp())
    return each.sum(-1)
