"""Proper scores and calibration of the members' mean probability, and of the members by themselves."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassCalibrationError

from lightning_hypernet.metrics.base import MeanScore, PopulationMetric, log
from lightning_hypernet.values import whole


class EnsembleNLL(MeanScore):
    """Negative log-likelihood of the mean probability, in nats."""

    higher_is_better = False
    plot_lower_bound = 0.0

    def score(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """The score of every example, ``(batch,)``."""
        return -log(_of_labels(probabilities, labels).mean(0))


class MemberNLL(MeanScore):
    """Mean over members of their negative log-likelihood, in nats."""

    higher_is_better = False
    plot_lower_bound = 0.0

    def score(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """The score of every example, ``(batch,)``."""
        return -log(_of_labels(probabilities, labels)).mean(0)


class EnsembleBrier(MeanScore):
    """Brier score of the mean probability: the sum over classes of squared differences from the label, 0 to 2.

    References:
        Verification of forecasts expressed in terms of probability (Brier, 1950)
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def score(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """The score of every example, ``(batch,)``."""
        return (probabilities.mean(0) - F.one_hot(labels, probabilities.shape[-1])).square().sum(-1)


class EnsembleCalibrationError(PopulationMetric, MulticlassCalibrationError):
    """Expected calibration error of the mean probability, as torchmetrics computes it.

    References:
        | On Calibration of Modern Neural Networks (Guo et al., 2017)
        | https://arxiv.org/abs/1706.04599

    Args:
        classes: Number of classes.
        bins: Number of bins of confidence.
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, classes: int, bins: int = 15, **options: Any) -> None:
        super().__init__(whole("classes", classes, 2), n_bins=whole("bins", bins), norm="l1", **options)

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch of probabilities ``(members, batch, classes)`` and labels ``(batch,)``."""
        if probabilities.shape[-1] != self.num_classes:
            raise ValueError(f"predictions are of {probabilities.shape[-1]} classes, and this metric of {self.num_classes}")
        MulticlassCalibrationError.update(self, probabilities.mean(0), labels)


def _of_labels(probabilities: Tensor, labels: Tensor) -> Tensor:
    """What every member gives the true class: ``(members, batch)``."""
    return probabilities.gather(-1, labels.expand(len(probabilities), -1)[..., None]).squeeze(-1)
