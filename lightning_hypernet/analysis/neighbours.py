"""Estimates of mutual information by nearest neighbours: scikit-learn's, and ennemi's where something is given."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from scipy.special import digamma, ndtri
from scipy.stats import rankdata
from torch import Tensor


def needed(module: str, package: str, extra: str) -> Any:
    """Import a module that is optional.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"estimates of information are {package}'s: pip install 'lightning_hypernet[{extra}]'") from error


def normal_scores(values: Tensor) -> Tensor:
    """Numbers ``(n,)`` as quantiles of a normal distribution, in the same order; information stays what it is."""
    ranks = torch.from_numpy(rankdata(values.numpy()))
    return torch.from_numpy(ndtri((ranks - 0.5).numpy() / len(values)))


def shared(one: Tensor, other: Tensor, neighbours: int, seed: int, given: Tensor | None = None) -> float:
    """The estimate of Kraskov, Stögbauer and Grassberger for two numbers, in nats, at least 0.

    Args:
        one: ``(n,)``, float64.
        other: ``(n,)``.
        neighbours: k, the neighbour that is looked at.
        seed: Of scikit-learn's small noise.
        given: ``(n, conditions)``, what is known; None: nothing.

    Raises:
        ValueError: If the library is not installed.
    """
    if given is not None and given.shape[1]:
        ennemi = needed("ennemi", "ennemi", "information")
        found = ennemi.estimate_mi(other.numpy(), one.numpy(), k=neighbours, cond=given.numpy(), max_threads=1)
        return max(float(found[0, 0]), 0.0)
    selection = needed("sklearn.feature_selection", "scikit-learn", "information")
    values = selection.mutual_info_regression(one[:, None].numpy(), other.numpy(), n_neighbors=neighbours, random_state=seed)
    return float(values[0])


def most_shared(count: int, neighbours: int) -> float:
    """The most that `shared` gives for so many rows with nothing given, in nats: that of two numbers that are the same."""
    return float(digamma(count) - digamma(neighbours + 1))


def shared_with_classes(latents: Tensor, classes: Tensor, neighbours: int, seed: int) -> Tensor:
    """Information that each column of ``(n, d)`` shares with classes ``(n,)``: ``(d,)``, float64, in nats, at least 0.

    Integers count as categories, real numbers by nearest neighbours.

    Raises:
        ValueError: If scikit-learn is not installed.
    """
    selection = needed("sklearn.feature_selection", "scikit-learn", "information")
    values = selection.mutual_info_classif(
        latents.numpy(),
        classes.numpy(),
        discrete_features=not latents.is_floating_point(),
        n_neighbors=neighbours,
        random_state=seed,
    )
    return torch.from_numpy(values).double()


def entropy_of(classes: Tensor) -> float:
    """Entropy of classes ``(n,)`` as they are found, in nats."""
    shares = classes.unique(return_counts=True)[1].double() / len(classes)
    return max(float(torch.special.entr(shares).sum()), 0.0) if len(shares) > 1 else 0.0


def finite(value: float) -> str:
    """A number of nats in a text; infinity is no maximum."""
    return "no maximum" if math.isinf(value) else f"at most {value:.3f}"
