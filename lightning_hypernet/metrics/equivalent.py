"""How many independent networks an ensemble is worth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_hypernet.metrics.base import checked_labels
from lightning_hypernet.metrics.base import log as log_of
from lightning_hypernet.uncertainty.temperature import fit_classes, tempered
from lightning_hypernet.values import real, reals, whole


def calibrated_log_likelihood(probabilities: Tensor, labels: Tensor, repeats: int = 5, seed: int = 0) -> float:
    """The mean log-likelihood of examples at the temperature that others of them ask for, in nats.

    The examples are halved at random; a temperature is fitted on each half and measured on the other.

    References:
        | Pitfalls of In-Domain Uncertainty Estimation and Ensembling in Deep Learning (Ashukha et al., 2020)
        | https://arxiv.org/abs/2002.06470, section 3

    Args:
        probabilities: Mean probabilities ``(examples, classes)``, not of those that temperatures were fitted on.
        labels: ``(examples,)``.
        repeats: How often the examples are halved.
        seed: Of the halves.

    Raises:
        TypeError: If something is no tensor, or labels are no integers.
        ValueError: If shapes do not fit, there are fewer than four examples, or they are no probabilities.

    Example:
        >>> sure = torch.tensor([[0.9, 0.1]]).repeat(100, 1)
        >>> found = calibrated_log_likelihood(sure, torch.arange(100) % 4 // 3)  # right on three of four
        >>> round(found, 1)
        -0.6
    """
    labels = checked_labels(labels, probabilities)
    if probabilities.ndim != 2 or len(labels) < 4:
        raise ValueError(f"probabilities must be (examples, classes), of four or more, not {tuple(probabilities.shape)}")
    if probabilities.min() < 0 or (probabilities.sum(-1) - 1).abs().max() > 1e-3:
        raise ValueError("probabilities must be 0 or more and sum to 1: pass prediction.mean, or softmax(-1) of logits")
    logs = log_of(probabilities.detach().double().cpu())
    labels = labels.cpu()
    generator, total = torch.Generator().manual_seed(whole("seed", seed, 0)), 0.0
    for _ in range(whole("repeats", repeats)):
        halves = torch.randperm(len(labels), generator=generator).chunk(2)
        for fitted, measured in (halves, halves[::-1]):
            temperature = fit_classes(logs[fitted], labels[fitted])
            total -= float(F.nll_loss(tempered(logs[measured], temperature), labels[measured])) / 2
    return total / repeats


def deep_ensemble_equivalent(score: float, networks: Sequence[float]) -> float:
    r"""How many independently trained networks have the same calibrated log-likelihood as an ensemble.

    .. math:: \min \{\, l \ge 1 : \mathrm{CLL}_{\text{networks}}(l) \ge \mathrm{CLL} \,\}

    with lines between whole numbers of networks. It is 1 for what one network reaches, and infinite for what none of the
    numbers given does.

    References:
        | Pitfalls of In-Domain Uncertainty Estimation and Ensembling in Deep Learning (Ashukha et al., 2020)
        | https://arxiv.org/abs/2002.06470, section 4

    Args:
        score: The ensemble's calibrated log-likelihood, as `calibrated_log_likelihood` gives it.
        networks: That of 1, 2, 3, ... independent networks, each the mean over several choices of them.

    Raises:
        ValueError: If something is no finite number.

    Example:
        >>> deep_ensemble_equivalent(-0.35, [-0.5, -0.4, -0.3, -0.28])
        2.5
    """
    score, known = real("score", score), reals("networks", networks)
    if known[0] >= score:
        return 1.0
    for count, (below, above) in enumerate(itertools.pairwise(known), 1):
        if above >= score:
            return count + (score - below) / (above - below)
    return math.inf
