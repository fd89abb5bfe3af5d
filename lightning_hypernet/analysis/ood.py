"""Out-of-distribution detection by what an ensemble does not know."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision, BinarySpecificityAtSensitivity

from lightning_hypernet.metrics.base import entropy
from lightning_hypernet.metrics.disagreement import mutual_information
from lightning_hypernet.target.loaders import check_loader


@dataclass(frozen=True)
class Detection:
    """Uncertainty of examples inside and outside of the training distribution.

    Args:
        inside: For every score its values ``(examples,)`` inside.
        outside: Likewise outside.
        results: For every score ``auroc``, ``aupr`` and ``fpr95``, outside being the positive class.
    """

    inside: dict[str, Tensor]
    outside: dict[str, Tensor]
    results: dict[str, dict[str, float]]

    def plot(self) -> tuple[Any, Any]:
        """Draw the histograms of every score; returns figure and axes of matplotlib."""
        from matplotlib import pyplot

        count = len(self.inside)
        figure, axes = pyplot.subplots(1, count, figsize=(4.5 * count, 3.5), layout="constrained", squeeze=False)
        for ax, (name, values) in zip(axes.flat, self.inside.items(), strict=True):
            ax.hist([values, self.outside[name]], bins=40, density=True, label=["inside", "outside"])
            ax.set(xlabel=f"{name.replace('_', ' ')}, nats", ylabel="density", title=f"AUROC {self.results[name]['auroc']:.3f}")
            ax.legend()
        return figure, axes


@torch.no_grad()
def ood(members: Callable[[Tensor], Tensor], inside: Iterable[Any], outside: Iterable[Any]) -> Detection:
    """Tell examples of one data set from those of another by the uncertainty of an ensemble.

    The scores are the entropy of the mean probability and the mutual information of label and member.

    References:
        | Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles (Lakshminarayanan et al., 2017)
        | https://arxiv.org/abs/1612.01474

    Args:
        members: Inputs to logits ``(members, batch, classes)``, such as `Ensemble.members`.
        inside: Batches of inputs like those of training, or tuples that begin with them, on the device of the members.
        outside: Batches of others.

    Returns:
        The scores, and how well they tell.

    Raises:
        TypeError: If the members are no function, or there are no batches.
        ValueError: If there are no examples, or the members give something else, or NaN.
    """
    if not callable(members):
        raise TypeError(f"members must be a function, as the method Ensemble.members is, not {members!r}")
    scores = [_scores(members, loader, name) for loader, name in ((inside, "inside"), (outside, "outside"))]
    results = {}
    for name in scores[0]:
        values = torch.cat([score[name] for score in scores])
        labels = torch.cat([torch.full_like(score[name], index, dtype=torch.long) for index, score in enumerate(scores)])
        ranks = values / values.max().clamp(min=1e-30)  # torchmetrics takes numbers outside [0, 1] for logits
        specificity, _ = BinarySpecificityAtSensitivity(min_sensitivity=0.95)(ranks, labels)
        results[name] = {
            "auroc": float(BinaryAUROC()(ranks, labels)),
            "aupr": float(BinaryAveragePrecision()(ranks, labels)),
            "fpr95": 1 - float(specificity),
        }
    return Detection(scores[0], scores[1], results)


def _scores(members: Callable[[Tensor], Tensor], loader: Iterable[Any], where: str) -> dict[str, Tensor]:
    check_loader(loader, where)
    found: dict[str, list[Tensor]] = {"entropy": [], "mutual_information": []}
    for batch in loader:
        logits = members(batch[0] if isinstance(batch, (tuple, list)) else batch)
        if logits.ndim != 3:
            raise ValueError(
                f"members must give logits (members, batch, classes), as the method Ensemble.members does, not "
                f"{tuple(logits.shape)}"
            )
        if not (logits < float("inf")).all():
            raise ValueError(f"the logits of {where} hold NaN or infinite numbers: check its inputs")
        probabilities = logits.softmax(-1)
        found["entropy"].append(entropy(probabilities.mean(0)).cpu())
        found["mutual_information"].append(mutual_information(probabilities).cpu())
    if not any(len(one) for one in found["entropy"]):
        raise ValueError(f"{where} is empty: there are no examples to tell apart")
    return {name: torch.cat(values) for name, values in found.items()}
