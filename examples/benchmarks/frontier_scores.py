"""Scores of the frontier: members, the ensemble and the one network that comes of a method."""

import warnings
from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from data import Images
from frontier_problems import Parts
from frontier_training import Trained
from lightning_hypernet.metrics import Disagreement, calibrated_log_likelihood
from lightning_hypernet.uncertainty.temperature import fit_classes, log_mean, tempered
from timing import DEVICE

BATCH, CHOICES = 500, 5
"""Images evaluated at once, and subsets of networks that a curve is the mean over."""


@torch.no_grad()
def log_probabilities(members: Callable[[Tensor], Tensor], images: Images) -> Tensor:
    """What every network makes of the images: ``(members, images, classes)``, in float64."""
    logits = [members(batch.to(DEVICE)).cpu() for batch, _ in images.loader(BATCH, shuffle=False)]
    return torch.cat(logits, 1).double().log_softmax(-1)


def calibrated(logs: Tensor, labels: Tensor) -> float:
    """Negative log-likelihood of log probabilities ``(images, classes)`` at the temperature that other images ask for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the temperature of .* went to its limit")
        return -calibrated_log_likelihood(logs.exp(), labels)


def choice(trained: Trained, images: Images) -> float:
    """What settings are chosen by: the ensemble's negative log-likelihood at its best temperature, on the validation part."""
    logs, labels = log_mean(log_probabilities(trained.members, images)), images.labels
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the temperature of .* went to its limit")
        return float(F.nll_loss(tempered(logs, fit_classes(logs, labels)), labels))


def curve(logs: Tensor, labels: Tensor) -> list[float]:
    """The calibrated negative log-likelihood of 1, 2, 3, ... of the networks together, the mean over some choices of them."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for count in range(1, len(logs) + 1):
        every = list(combinations(range(len(logs)), count))
        chosen = torch.randperm(len(every), generator=generator)[:CHOICES].tolist()
        values = [calibrated(log_mean(logs[list(every[index])]), labels) for index in chosen]
        found.append(sum(values) / len(values))
    return found


def accuracy(logs: Tensor, labels: Tensor) -> float:
    """In percent, of log probabilities ``(..., images, classes)``."""
    return 100 * float((logs.argmax(-1) == labels).double().mean())


def nll(logs: Tensor, labels: Tensor) -> float:
    """In nats, of log probabilities ``(..., images, classes)``."""
    return -float(logs.gather(-1, labels.expand(logs.shape[:-1])[..., None]).mean())


def of_ensemble(logs: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of log probabilities ``(images, classes)``: accuracy in percent, likelihoods in nats, calibration error."""
    return {
        "accuracy": accuracy(logs, labels),
        "nll": nll(logs, labels),
        "cnll": calibrated(logs, labels),
        "ece": 100 * float(multiclass_calibration_error(logs.exp(), labels, logs.shape[-1], n_bins=15)),
    }


def entropy(logs: Tensor) -> Tensor:
    """Of log probabilities ``(images, classes)``, in nats."""
    return -(logs.exp() * logs.clamp(min=-1e6)).sum(-1)


def auroc(inside: Tensor, outside: Tensor) -> float:
    """How well the entropy tells other images from those of the task, in percent."""
    uncertain = torch.cat([entropy(inside), entropy(outside)])
    truth = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))])
    return 100 * float(roc_auc_score(truth.numpy(), uncertain.numpy()))


def scores(trained: Trained, parts: Parts, curved: bool = False) -> dict[str, Any]:
    """All that is told of a training.

    Args:
        trained: What it left.
        parts: The images; those of the test are scored.
        curved: Whether to tell what fewer of the networks reach together.

    Returns:
        ``members``, how many there are, and their mean ``member_accuracy`` and ``member_nll``; the ensemble's scores;
        ``disagreement`` in percent, ``auroc``; and those of the one network, if there is one, under ``one_``.
    """
    labels = parts.test.labels
    logs = log_probabilities(trained.members, parts.test)
    found: dict[str, Any] = {"members": len(logs), "other": parts.kind}
    found |= {"member_accuracy": accuracy(logs, labels), "member_nll": nll(logs, labels)}
    found |= of_ensemble(log_mean(logs), labels)
    found["disagreement"] = 100 * float(Disagreement()(logs.exp(), labels)) if len(logs) > 1 else 0.0
    found["auroc"] = auroc(log_mean(logs), log_mean(log_probabilities(trained.members, parts.other)))
    if trained.one is not None:
        found |= {f"one_{name}": value for name, value in of_one(trained.one, parts.test).items()}
    if curved and len(logs) > 1:
        found["curve"] = [round(value, 6) for value in curve(logs, labels)]
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in found.items()}


def of_one(network: nn.Module, images: Images) -> dict[str, float]:
    """Scores of one network."""
    (logs,) = log_probabilities(lambda batch: network(batch)[None], images)
    return of_ensemble(logs, images.labels)
