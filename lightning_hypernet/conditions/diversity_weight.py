"""DiversityWeight: the trade-off between accuracy and diversity as a hyperparameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from lightning_hypernet.conditions.base import Condition
from lightning_hypernet.conditions.ranges import Range


class DiversityWeight(Condition):
    """The weight of a diversity loss, one for all networks of a step, so that one generator holds the whole trade-off.

    It takes the place of the weight that the loss was given.

    Args:
        range: Of the weight.
        loss: The name of the diversity loss.
    """

    shared: ClassVar[bool] = True
    least: ClassVar[float] = 0.0

    def __init__(self, range: Range, loss: str = "entropy") -> None:
        super().__init__(range)
        self.loss = loss

    def weights(self, values: Tensor) -> Mapping[str, Tensor]:
        """The weight of the loss, a scalar."""
        return {self.loss: values[0]}
