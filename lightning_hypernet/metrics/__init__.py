"""Metrics of populations, on torchmetrics: classes, maps and numbers, calibration, disagreement, curves, weights, entropy."""

from __future__ import annotations

from torchmetrics import MetricCollection

from lightning_hypernet.metrics.accuracy import EnsembleAccuracy, MemberAccuracy
from lightning_hypernet.metrics.base import PopulationMetric
from lightning_hypernet.metrics.curves import (
    QuantileReliability,
    RegressionRejectionCurve,
    RejectionCurve,
    ReliabilityCurve,
)
from lightning_hypernet.metrics.disagreement import Disagreement, PairwiseKL, PredictiveInformation, VariationRatio
from lightning_hypernet.metrics.equivalent import calibrated_log_likelihood, deep_ensemble_equivalent
from lightning_hypernet.metrics.errors import DoubleFault, QStatistic
from lightning_hypernet.metrics.likelihood import EnsembleBrier, EnsembleCalibrationError, EnsembleNLL, MemberNLL
from lightning_hypernet.metrics.manifold import ManifoldEntropy, NeighbourEntropy
from lightning_hypernet.metrics.maps import EnsembleIoU
from lightning_hypernet.metrics.regression import (
    CRPS,
    Coverage,
    EnsembleRMSE,
    MemberRMSE,
    MemberSpread,
    MixtureNLL,
    RegressionMetric,
    Sharpness,
)
from lightning_hypernet.metrics.weights import SymmetryDistance, WeightCosine

__all__ = [
    "CRPS",
    "Coverage",
    "Disagreement",
    "DoubleFault",
    "EnsembleAccuracy",
    "EnsembleBrier",
    "EnsembleCalibrationError",
    "EnsembleIoU",
    "EnsembleNLL",
    "EnsembleRMSE",
    "ManifoldEntropy",
    "MemberAccuracy",
    "MemberNLL",
    "MemberRMSE",
    "MemberSpread",
    "MixtureNLL",
    "NeighbourEntropy",
    "PairwiseKL",
    "PopulationMetric",
    "PredictiveInformation",
    "QStatistic",
    "QuantileReliability",
    "RegressionMetric",
    "RegressionRejectionCurve",
    "RejectionCurve",
    "ReliabilityCurve",
    "Sharpness",
    "SymmetryDistance",
    "VariationRatio",
    "WeightCosine",
    "calibrated_log_likelihood",
    "deep_ensemble_equivalent",
    "population_metrics",
    "regression_metrics",
]


def population_metrics(classes: int) -> MetricCollection:
    """Every metric of predictions ``(members, batch, classes)`` and labels ``(batch,)``, or of maps, by name.

    Args:
        classes: Number of classes.

    Example:
        >>> import torch
        >>> metrics = population_metrics(3)
        >>> metrics.update(torch.randn(5, 8, 3), torch.randint(0, 3, (8,)))
        >>> print(*sorted(metrics.compute())[:3])
        best_member_accuracy brier disagreement
    """
    return MetricCollection(
        {
            "member_accuracy": MemberAccuracy(),
            "best_member_accuracy": MemberAccuracy("best"),
            "ensemble_accuracy": EnsembleAccuracy(),
            "majority_accuracy": EnsembleAccuracy("majority"),
            "member_nll": MemberNLL(),
            "ensemble_nll": EnsembleNLL(),
            "brier": EnsembleBrier(),
            "ece": EnsembleCalibrationError(classes),
            "disagreement": Disagreement(),
            "mutual_information": PredictiveInformation(),
            "variation_ratio": VariationRatio(),
            "pairwise_kl": PairwiseKL(),
            "double_fault": DoubleFault(),
            "q_statistic": QStatistic(),
        },
        compute_groups=False,
    )


def regression_metrics(level: float = 0.9) -> MetricCollection:
    """Every metric of means and variances ``(members, batch, ...)`` and targets ``(batch, ...)``, by name.

    Args:
        level: Of the intervals whose coverage and width are measured.

    Example:
        >>> import torch
        >>> metrics = regression_metrics()
        >>> metrics.update(torch.randn(5, 8), torch.randn(8), torch.ones(5, 8))
        >>> print(*sorted(metrics.compute())[:3])
        coverage crps ensemble_rmse
    """
    return MetricCollection(
        {
            "ensemble_rmse": EnsembleRMSE(),
            "member_rmse": MemberRMSE(),
            "mixture_nll": MixtureNLL(),
            "crps": CRPS(),
            "coverage": Coverage(level),
            "sharpness": Sharpness(level),
            "member_spread": MemberSpread(),
        },
        compute_groups=False,
    )
