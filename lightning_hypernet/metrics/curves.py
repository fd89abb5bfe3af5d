"""Curves: how often predictions are right that are so sure, and how right those are that are kept."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from lightning_hypernet.metrics.base import PopulationMetric
from lightning_hypernet.metrics.regression import RegressionMetric
from lightning_hypernet.uncertainty import mixtures
from lightning_hypernet.uncertainty.drawing import axes_or_new
from lightning_hypernet.uncertainty.prediction import ClassPrediction
from lightning_hypernet.values import choice, whole

_ROUNDING = 1e-6


class ReliabilityCurve(PopulationMetric):
    """How often the mean probability is right, by how sure it is.

    `compute` gives ``(3, bins)``: the mean confidence of every bin of equal width, its accuracy, both NaN for an empty bin, and
    its share of the examples. A confidence on an edge is in the bin above, as in `EnsembleCalibrationError`, to which the bins
    add up, but that one of exactly 1, which torchmetrics counts apart there, is in the last bin here.

    References:
        | On Calibration of Modern Neural Networks (Guo et al., 2017)
        | https://arxiv.org/abs/1706.04599

    Args:
        bins: Number of bins of confidence.
    """

    higher_is_better = None
    sums: Tensor

    def __init__(self, bins: int = 15, **options: Any) -> None:
        super().__init__(**options)
        self.bins = whole("bins", bins)
        self.add_state("sums", torch.zeros(3, self.bins, dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch of probabilities ``(members, batch, classes)`` and labels ``(batch,)``."""
        confidence, said = probabilities.mean(0).max(-1)
        edges = torch.linspace(0, 1, self.bins + 1, dtype=torch.float32, device=confidence.device)[1:-1]
        bin_of = torch.bucketize(confidence.float(), edges, right=True)
        rows = torch.stack([confidence.double(), (said == labels).double(), torch.ones_like(confidence)])
        self.sums += torch.zeros_like(self.sums, device=rows.device).index_add_(1, bin_of, rows).to(self.sums)

    def compute(self) -> Tensor:
        """Confidence, accuracy and share of every bin, ``(3, bins)``."""
        count = self.sums[2]
        return torch.stack([self.sums[0] / count, self.sums[1] / count, count / count.sum()]).float()

    def plot(self, value: Any = None, ax: Any = None) -> Any:
        """Draw it beside the line on which predictions are calibrated. Returns figure and axes of matplotlib."""
        confidence, accuracy, share = (self.compute() if value is None else value).cpu()
        figure, axes = axes_or_new(ax)
        some = share > 0
        axes.plot([0, 1], [0, 1], ":", color="gray", label="calibrated")
        axes.plot(confidence[some].numpy(), accuracy[some].numpy(), "o-", label="ensemble")
        axes.bar((torch.arange(self.bins) + 0.5).numpy() / self.bins, share.numpy(), 1 / self.bins, alpha=0.2, label="share")
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="upper left")
        return figure, axes


class QuantileReliability(RegressionMetric):
    """How often numbers lie at or below the quantiles of the mixture, by the quantiles' levels.

    `compute` gives ``(2, levels)``: the levels, and the shares of numbers, which are the levels where it is calibrated.

    References:
        | Accurate Uncertainties for Deep Learning Using Calibrated Regression (Kuleshov et al., 2018)
        | https://arxiv.org/abs/1807.00263

    Args:
        levels: How many levels, evenly between 0 and 1.
    """

    higher_is_better = None

    def __init__(self, levels: int = 19, **options: Any) -> None:
        super().__init__(**options)
        self.levels = whole("levels", levels)
        self.add_state("total", torch.zeros(self.levels, dtype=torch.float64), dist_reduce_fx="sum")

    def score(self, means: Tensor, targets: Tensor, variances: Tensor) -> Tensor:
        """The share of the mixture below every number, ``(batch, ...)``: less than a level up to its quantile."""
        return mixtures.distribution(targets, means, variances, below=True)

    def tally(self, values: Tensor) -> None:
        """Count the numbers ``(n,)`` at or below every level."""
        self.total += (values[:, None] < self._levels().to(values) - _ROUNDING).double().sum(0).to(self.total)
        self.count += len(values)

    def compute(self) -> Tensor:
        """Levels and shares, ``(2, levels)``."""
        shares = (self.total / self.count).float()
        return torch.stack([self._levels().to(shares), shares])

    def plot(self, value: Any = None, ax: Any = None) -> Any:
        """Draw it beside the line on which predictions are calibrated. Returns figure and axes of matplotlib."""
        levels, shares = (self.compute() if value is None else value).cpu()
        figure, axes = axes_or_new(ax)
        axes.plot([0, 1], [0, 1], ":", color="gray", label="calibrated")
        axes.plot(levels.numpy(), shares.numpy(), "o-", label="ensemble")
        axes.set(xlabel="level", ylabel="share of numbers below the quantile", xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="upper left")
        return figure, axes

    def _levels(self) -> Tensor:
        return torch.arange(1, self.levels + 1, dtype=torch.float64) / (self.levels + 1)


class RejectionCurve(PopulationMetric):
    """The error of the examples that are kept when the least sure ones are set aside.

    `compute` gives ``(2, examples)``: the share that is kept, from one example to all, and the error rate of the mean
    probability among these; examples that are alike sure share what is between them. `area` is the mean of the rates.

    References:
        | Selective Classification for Deep Neural Networks (Geifman and El-Yaniv, 2017)
        | https://arxiv.org/abs/1705.08500

    Args:
        by: What sorts the examples: ``"confidence"``, the largest probability of the mean; ``"total"``, ``"aleatoric"`` or
            ``"epistemic"`` uncertainty.
    """

    higher_is_better = None
    doubts: list[Tensor]
    wrong: list[Tensor]

    def __init__(self, by: Literal["confidence", "total", "aleatoric", "epistemic"] = "confidence", **options: Any) -> None:
        super().__init__(**options)
        self.by = choice("by", by, ("confidence", "total", "aleatoric", "epistemic"))
        self.add_state("doubts", [], dist_reduce_fx="cat")
        self.add_state("wrong", [], dist_reduce_fx="cat")

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch of probabilities ``(members, batch, classes)`` and labels ``(batch,)``."""
        prediction = ClassPrediction(probabilities.log())
        self.doubts.append(-prediction.confidence if self.by == "confidence" else getattr(prediction, self.by))
        self.wrong.append((prediction.label != labels).double())

    def compute(self) -> Tensor:
        """Shares and error rates, ``(2, examples)``."""
        return _kept(dim_zero_cat(self.doubts), dim_zero_cat(self.wrong))

    @property
    def area(self) -> Tensor:
        """The mean of the error rates over all shares, a scalar: the less the better."""
        return self.compute()[1].mean()

    def plot(self, value: Any = None, ax: Any = None) -> Any:
        """Draw accuracy by the share that is kept. Returns figure and axes of matplotlib."""
        share, error = (self.compute() if value is None else value).cpu()
        figure, axes = axes_or_new(ax)
        axes.plot(100 * share.numpy(), 100 * (1 - error).numpy(), label=f"by {self.by}")
        axes.set(xlabel="examples kept, %", ylabel="accuracy, %")
        axes.legend()
        return figure, axes


class RegressionRejectionCurve(RegressionMetric):
    """The squared error of the numbers that are kept when the least sure ones are set aside; see `RejectionCurve`.

    Args:
        by: What sorts the numbers: ``"total"``, ``"aleatoric"`` or ``"epistemic"`` variance.
    """

    higher_is_better = None
    doubts: list[Tensor]
    wrong: list[Tensor]

    def __init__(self, by: Literal["total", "aleatoric", "epistemic"] = "total", **options: Any) -> None:
        super().__init__(**options)
        self.by = choice("by", by, ("total", "aleatoric", "epistemic"))
        self.add_state("doubts", [], dist_reduce_fx="cat")
        self.add_state("wrong", [], dist_reduce_fx="cat")

    def score(self, means: Tensor, targets: Tensor, variances: Tensor) -> Tensor:
        """The doubt of every number, ``(batch, ...)``; its error is kept beside it."""
        mean, within, between = mixtures.moments(means, variances)
        self.wrong.append((mean - targets).square().flatten())
        return {"total": within + between, "aleatoric": within, "epistemic": between}[self.by]

    def tally(self, values: Tensor) -> None:
        """Keep the doubts ``(n,)``."""
        self.doubts.append(values)

    def compute(self) -> Tensor:
        """Shares and mean squared errors, ``(2, numbers)``."""
        return _kept(dim_zero_cat(self.doubts), dim_zero_cat(self.wrong))

    @property
    def area(self) -> Tensor:
        """The mean of the errors over all shares, a scalar: the less the better."""
        return self.compute()[1].mean()

    def plot(self, value: Any = None, ax: Any = None) -> Any:
        """Draw the root of the error by the share that is kept. Returns figure and axes of matplotlib."""
        share, error = (self.compute() if value is None else value).cpu()
        figure, axes = axes_or_new(ax)
        axes.plot(100 * share.numpy(), error.sqrt().numpy(), label=f"by {self.by}")
        axes.set(xlabel="numbers kept, %", ylabel="root mean squared error")
        axes.legend()
        return figure, axes


def _kept(doubts: Tensor, wrong: Tensor) -> Tensor:
    """Shares that are kept and their mean errors, ``(2, n)``; between equal doubts the error is shared evenly."""
    _, group, count = doubts.unique(return_inverse=True, return_counts=True)
    error = torch.zeros(len(count), dtype=wrong.dtype, device=wrong.device).index_add_(0, group, wrong) / count
    even = error[group.sort().values]
    ranks = torch.arange(1, len(even) + 1, device=even.device, dtype=even.dtype)
    return torch.stack([ranks / len(even), even.cumsum(0) / ranks]).float()
