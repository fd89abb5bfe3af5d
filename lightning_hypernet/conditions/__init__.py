"""Conditions: hyperparameters that networks are generated for, and what each does to a network's training."""

from __future__ import annotations

from collections.abc import Callable

from lightning_hypernet.conditions.base import Condition
from lightning_hypernet.conditions.conditions import Conditions, recipe_of_conditions
from lightning_hypernet.conditions.diversity_weight import DiversityWeight
from lightning_hypernet.conditions.dropout import Dropout
from lightning_hypernet.conditions.given import Given
from lightning_hypernet.conditions.l2 import L2
from lightning_hypernet.conditions.label_smoothing import LabelSmoothing
from lightning_hypernet.conditions.ranges import Choice, LogUniform, Range, Uniform, choice, log_uniform, read_range, uniform
from lightning_hypernet.markers import hookimpl

__all__ = [
    "L2",
    "Choice",
    "Condition",
    "Conditions",
    "DiversityWeight",
    "Dropout",
    "Given",
    "LabelSmoothing",
    "LogUniform",
    "Range",
    "Uniform",
    "choice",
    "log_uniform",
    "read_range",
    "recipe_of_conditions",
    "uniform",
]


@hookimpl
def hypernet_register_conditions(register: Callable[[str, type[Condition]], None]) -> None:
    """Register the built-in conditions."""
    register("l2", L2)
    register("dropout", Dropout)
    register("label_smoothing", LabelSmoothing)
    register("diversity_weight", DiversityWeight)
    register("given", Given)
