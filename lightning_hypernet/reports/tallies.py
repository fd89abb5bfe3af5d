"""Tallies: what a report counts of members' outputs, batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_hypernet.metrics import (
    EnsembleAccuracy,
    EnsembleBrier,
    EnsembleCalibrationError,
    EnsembleNLL,
    ReliabilityCurve,
    population_metrics,
)

BINS = 15
"""Bins of confidence, as many as `EnsembleCalibrationError` has."""
_POINTS = 400
_OF_PAIRS = ("disagreement", "pairwise_kl", "double_fault", "q_statistic")


def _alone() -> bool:
    """Whether there are other ranks to ask."""
    return False


class ClassTally:
    """Figures of members' class probabilities.

    Args:
        members: How many members.
        classes: How many classes.
        device: Where the predictions are.
    """

    def __init__(self, members: int, classes: int, device: torch.device) -> None:
        metrics = population_metrics(classes).items()
        self.together: dict[str, Metric] = {
            name: metric.to(device) for name, metric in metrics if members > 1 or name not in _OF_PAIRS
        }
        self.alone: list[dict[str, Metric]] = [
            {
                "accuracy": EnsembleAccuracy().to(device),
                "nll": EnsembleNLL().to(device),
                "brier": EnsembleBrier().to(device),
                "ece": EnsembleCalibrationError(classes, BINS).to(device),
            }
            for _ in range(members)
        ]
        self.curve = ReliabilityCurve(BINS).to(device)
        for metric in (*self.together.values(), self.curve, *(one for metrics in self.alone for one in metrics.values())):
            metric.distributed_available_fn = _alone  # each rank tells of its own part: one may measure while others do not
        self.differing = torch.zeros(members, members, dtype=torch.double)
        self.count = 0

    def add(self, predictions: Tensor, labels: Tensor) -> None:
        """Add probabilities ``(S, n, classes)`` and labels ``(n,)``."""
        if not len(labels):
            return
        predictions = predictions.float()
        for metric in (*self.together.values(), self.curve):
            metric.update(predictions, labels)
        for index, metrics in enumerate(self.alone):
            for metric in metrics.values():
                metric.update(predictions[index : index + 1], labels)
        votes = predictions.argmax(-1)
        self.differing += (votes[:, None] != votes[None]).double().sum(-1).cpu()
        self.count += len(labels)

    def figures(self) -> dict[str, float]:
        """The metrics of `population_metrics`, and the means of the members' own where these have none."""
        own = self.members()
        means = {f"member_{name}": sum(row[name] for row in own) / len(own) for name in ("brier", "ece")}
        return {**{name: float(metric.compute()) for name, metric in self.together.items()}, **means}

    def members(self) -> list[dict[str, float]]:
        """The figures of every member by itself, and its mean disagreement with the others."""
        found = [{name: float(metric.compute()) for name, metric in metrics.items()} for metrics in self.alone]
        if len(found) > 1:
            for row, differing in zip(found, self.disagreement(), strict=True):
                row["disagreement"] = float(differing.sum() / (len(found) - 1))
        return found

    def disagreement(self) -> Tensor:
        """Share of examples on which two members say different classes, ``(S, S)``."""
        return self.differing / max(self.count, 1)

    def reliability(self) -> Tensor:
        """For every bin of confidence: examples, mean confidence, accuracy; ``(bins, 3)``, zeros where there are none."""
        confidence, accuracy, _ = self.curve.compute().double().cpu()
        return torch.stack([self.curve.sums[2].double().cpu(), confidence, accuracy], 1).nan_to_num()


class NumberTally:
    r"""Errors of members' numbers, and how far members are from each other.

    .. math:: \text{rmse} = \sqrt{\tfrac{1}{n} \sum_i (\tfrac{1}{S} \sum_s y_{si} - t_i)^2}, \quad
        \text{spread} = \sqrt{\tfrac{1}{n} \sum_i \tfrac{1}{S} \sum_s (y_{si} - \bar y_i)^2}

    Args:
        members: How many members.
    """

    def __init__(self, members: int) -> None:
        self.sums = torch.zeros(members, 2, dtype=torch.double)
        self.joined = torch.zeros(3, dtype=torch.double)
        self.points = torch.zeros(0, 3, dtype=torch.double)
        self.count, self.right = 0, True

    def add(self, outputs: Tensor, targets: Tensor | None) -> None:
        """Add outputs ``(S, n)`` and what they should be ``(n,)``, or None if nobody knows."""
        outputs = outputs.double().cpu()
        mean, deviation = outputs.mean(0), outputs.std(0, correction=0)
        self.right &= targets is not None
        wanted = mean if targets is None else targets.double().cpu()
        errors = outputs - wanted
        self.sums += torch.stack([errors.square().sum(1), errors.abs().sum(1)], 1)
        error = mean - wanted
        self.joined += torch.stack([error.square().sum(), error.abs().sum(), deviation.square().sum()])
        self.points = torch.cat([self.points, torch.stack([wanted, mean, deviation], 1)])[:_POINTS]
        self.count += outputs.shape[1]

    def figures(self) -> dict[str, float]:
        """Errors of the members in the mean and of their mean; the spread of the members."""
        spread = {"spread": float((self.joined[2] / self.count).sqrt())}
        if not self.right:
            return spread
        own = self.members()
        return {
            "member_rmse": sum(row["rmse"] for row in own) / len(own),
            "best_member_rmse": min(row["rmse"] for row in own),
            "ensemble_rmse": float((self.joined[0] / self.count).sqrt()),
            "member_mae": sum(row["mae"] for row in own) / len(own),
            "best_member_mae": min(row["mae"] for row in own),
            "ensemble_mae": float(self.joined[1] / self.count),
            **spread,
        }

    def members(self) -> list[dict[str, float]]:
        """The errors of every member; empty dictionaries if nobody knows what is right."""
        if not self.right:
            return [{} for _ in self.sums]
        means = self.sums / self.count
        return [{"rmse": float(square.sqrt()), "mae": float(absolute)} for square, absolute in means]
