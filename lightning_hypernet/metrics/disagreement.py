"""How members differ in what they predict, whatever is right."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_hypernet.metrics.base import MeanScore, entropy, log, pair_mean


class Disagreement(MeanScore):
    """Share of examples on which two members predict different classes, the mean over all pairs.

    References:
        | Deep Ensembles: A Loss Landscape Perspective (Fort et al., 2019)
        | https://arxiv.org/abs/1912.02757
    """

    higher_is_better = None
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def score(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """The share of pairs that disagree on every example, ``(batch,)``."""
        votes = probabilities.argmax(-1)
        return pair_mean((votes[:, None] != votes[None]).float())


class PredictiveInformation(MeanScore):
    r"""Mutual information between the label and the member, in nats: what members know apart (BALD).

    .. math:: H\Bigl[\frac{1}{M} \sum_m p_m\Bigr] - \frac{1}{M} \sum_m H[p_m]

    References:
        | Bayesian Active Learning for Classification and Preference Learning (Houlsby et al., 2011)
        | https://arxiv.org/abs/1112.5745
    """

    higher_is_better = None
    plot_lower_bound = 0.0

    def score(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """The information of every example, ``(batch,)``."""
        return mutual_information(probabilities)


def mutual_information(probabilities: Tensor) -> Tensor:
    """Mutual information between label and member: ``(members, batch, classes)`` to ``(batch,)``, in nats."""
    return (entropy(probabilities.mean(0)) - entropy(probabilities).mean(0)).clamp(min=0)


class VariationRatio(MeanScore):
    """Share of members that do not predict the class that most predict.

    References:
        Elementary applied statistics (Freeman, 1965)
    """

    higher_is_better = None
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def score(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """The ratio of every example, ``(batch,)``."""
        return 1 - F.one_hot(probabilities.argmax(-1), probabilities.shape[-1]).float().mean(0).amax(-1)


class PairwiseKL(MeanScore):
    """Kullback-Leibler divergence of one member's prediction from another's, in nats, the mean over all ordered pairs.

    A probability of 0 counts as the least positive number, so that no divergence exceeds some 87 nats.

    References:
        On information and sufficiency (Kullback and Leibler, 1951)
    """

    higher_is_better = None
    plot_lower_bound = 0.0

    def score(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """The divergence of every example, ``(batch,)``."""
        crossed = torch.einsum("ibc,jbc->ijb", probabilities, log(probabilities))
        divergences = -entropy(probabilities)[:, None] - crossed
        divergences.diagonal(dim1=0, dim2=1).zero_()
        return pair_mean(divergences)
