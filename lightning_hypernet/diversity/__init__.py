"""Diversity losses: a scalar of a population, low = diverse."""

from __future__ import annotations

from collections.abc import Callable

from lightning_hypernet.diversity.base import DiversityLoss, WeightedDiversity
from lightning_hypernet.diversity.ensemble import EnsembleLoss
from lightning_hypernet.diversity.entropy import Entropy
from lightning_hypernet.diversity.kl import KL
from lightning_hypernet.diversity.mutual_information import MutualInformation
from lightning_hypernet.diversity.outputs import OutputEntropy
from lightning_hypernet.diversity.rate import Rate
from lightning_hypernet.diversity.repulsion import Repulsion
from lightning_hypernet.diversity.variance import Variance
from lightning_hypernet.markers import hookimpl

__all__ = [
    "KL",
    "DiversityLoss",
    "EnsembleLoss",
    "Entropy",
    "MutualInformation",
    "OutputEntropy",
    "Rate",
    "Repulsion",
    "Variance",
    "WeightedDiversity",
]


@hookimpl
def hypernet_register_diversity(register: Callable[[str, type[DiversityLoss]], None]) -> None:
    """Register the losses of this package."""
    register("entropy", Entropy)
    register("variance", Variance)
    register("output_entropy", OutputEntropy)
    register("ensemble", EnsembleLoss)
    register("mutual_information", MutualInformation)
    register("repulsion", Repulsion)
    register("kl", KL)
    register("rate", Rate)
