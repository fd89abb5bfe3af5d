"""Condition, what every hyperparameter is that networks are generated for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_hypernet.conditions.ranges import Range
from lightning_hypernet.population import Population


class Condition:
    """A hyperparameter: its values, and what they do to a network's training.

    A subclass is made as ``cls(range, **options)`` and overrides what it does; by itself a condition does nothing but reach the
    generator, for whoever reads it in `training_step`. It keeps nothing of a step.

    Args:
        range: Its values.

    Attributes:
        shared: Whether all networks of a step have the same value.
        single: Whether there may be one of the kind alone.
        least: The least value that means something, where values must be numbers.
        most: The greatest.
    """

    shared: ClassVar[bool] = False
    single: ClassVar[bool] = False
    least: ClassVar[float | None] = None
    most: ClassVar[float] = math.inf

    def __init__(self, range: Range) -> None:
        self.range = range
        if self.least is None:
            return
        low, high = range.bounds() or (math.nan, math.nan)
        if not self.least <= low <= high <= self.most:
            most = "" if self.most == math.inf else f" to {self.most:g}"
            raise ValueError(f"the values of {type(self).__name__} must be numbers from {self.least:g}{most}, not {range!r}")

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({options})"

    def count(self, target: nn.Module) -> int:
        """How many values there are, seeing the target before it is wrapped; 1, unless a subclass says more.

        Raises:
            ValueError: If the target has nothing that the condition could act on.
        """
        return 1

    def penalty(self, population: Population, values: Tensor) -> Tensor | None:
        """What joins the loss of every network, ``(S,)``, of values ``(S, count)``; None: nothing."""
        return None

    def settings(self, values: Tensor) -> Mapping[tuple[str, str], Tensor]:
        """What is set in the modules of every network: for the path of a module and an attribute, numbers ``(S,)``."""
        return {}

    def weights(self, values: Tensor) -> Mapping[str, Tensor]:
        """Weights of diversity losses by their names, scalars, of values ``(count,)``, where the condition is shared."""
        return {}

    def around_step(self, values: Tensor, of_examples: Callable[[Tensor, int], Tensor]) -> AbstractContextManager[Any]:
        """What a training step runs in.

        Args:
            values: ``(S, count)``, of its networks.
            of_examples: Turns ``(S,)`` and a number of examples into ``(batch,)``, for every example of the last call with so
                many what its network has.
        """
        return nullcontext()
