"""Metrics of populations, on torchmetrics: members and ensemble, calibration, disagreement, errors, weights, entropy."""

from __future__ import annotations

from torchmetrics import MetricCollection

from lightning_hypernet.metrics.accuracy import EnsembleAccuracy, MemberAccuracy
from lightning_hypernet.metrics.base import PopulationMetric
from lightning_hypernet.metrics.disagreement import Disagreement, PairwiseKL, PredictiveInformation, VariationRatio
from lightning_hypernet.metrics.errors import DoubleFault, QStatistic
from lightning_hypernet.metrics.likelihood import EnsembleBrier, EnsembleCalibrationError, EnsembleNLL, MemberNLL
from lightning_hypernet.metrics.manifold import ManifoldEntropy, NeighbourEntropy
from lightning_hypernet.metrics.weights import SymmetryDistance, WeightCosine

__all__ = [
    "Disagreement",
    "DoubleFault",
    "EnsembleAccuracy",
    "EnsembleBrier",
    "EnsembleCalibrationError",
    "EnsembleNLL",
    "ManifoldEntropy",
    "MemberAccuracy",
    "MemberNLL",
    "NeighbourEntropy",
    "PairwiseKL",
    "PopulationMetric",
    "PredictiveInformation",
    "QStatistic",
    "SymmetryDistance",
    "VariationRatio",
    "WeightCosine",
    "population_metrics",
]


def population_metrics(classes: int) -> MetricCollection:
    """Every metric of predictions ``(members, batch, classes)`` and labels ``(batch,)``, by name.

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
