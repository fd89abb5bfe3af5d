"""Conformal sets: as wide as a loader that nothing was trained on says they must be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_hypernet.values import real

CLASS_SCORES = ("least", "adaptive")
NUMBER_SCORES = ("scaled", "absolute")


@dataclass(frozen=True, eq=False)
class Conformal:
    r"""Scores of examples, whose order says how large a set must be.

    A set holds every answer with a score of at most the k-th smallest of the n scores, k = ceil((n + 1) level). If the examples
    are exchangeable with those to come, a set holds the truth with a probability of at least the level; where k > n, it holds
    everything.

    References:
        | A Gentle Introduction to Conformal Prediction and Distribution-Free Uncertainty Quantification
          (Angelopoulos and Bates, 2021)
        | https://arxiv.org/abs/2107.07511

    Args:
        kind: How answers are scored.
        scores: ``(n, outputs)``, each column in order; outputs are told apart for numbers alone.
    """

    kind: str
    scores: Tensor

    def threshold(self, level: float) -> Tensor:
        """The largest score in a set at a level, ``(outputs,)``; infinite where there are too few examples.

        Raises:
            ValueError: If the level is not between 0 and 1.
        """
        count = len(self.scores)
        rank = math.ceil((count + 1) * checked_level(level) * (1 - 1e-12))
        return torch.full_like(self.scores[0], math.inf) if rank > count else self.scores[rank - 1]


def checked_level(level: float) -> float:
    """A level, between 0 and 1.

    Raises:
        ValueError: If it is another.
    """
    read = real("level", level, 0, 1, above=True)
    if read == 1:
        raise ValueError("level must lie between 0 and 1, not 1: no finite set is sure to hold the truth")
    return read


def class_scores(probabilities: Tensor, kind: str) -> Tensor:
    r"""The score of every class, of probabilities ``(..., classes)``, same shape.

    ``"least"``: :math:`1 - p_y`, which gives the smallest sets on average. ``"adaptive"``: the sum of all probabilities that
    are as large as :math:`p_y` or larger, which gives hard examples larger sets.

    References:
        | Least Ambiguous Set-Valued Classifiers with Bounded Error Levels (Sadinle et al., 2019)
        | https://arxiv.org/abs/1609.00451
        | Classification with Valid and Adaptive Coverage (Romano et al., 2020)
        | https://arxiv.org/abs/2006.02544
    """
    if kind == "least":
        return 1 - probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    return torch.empty_like(ordered).scatter_(-1, order, ordered.cumsum(-1))


def number_scores(targets: Tensor, mean: Tensor, spread: Tensor, kind: str) -> Tensor:
    """Distances from the mean, ``(...)``: in units of the spread where ``"scaled"``, in their own where ``"absolute"``.

    References:
        | Distribution-Free Predictive Inference for Regression (Lei et al., 2018)
        | https://arxiv.org/abs/1604.04173
    """
    away = (targets - mean).abs()
    return away / spread if kind == "scaled" else away
