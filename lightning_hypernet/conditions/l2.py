"""L2: weight decay as a hyperparameter."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_hypernet.conditions.base import Condition
from lightning_hypernet.conditions.ranges import Range
from lightning_hypernet.population import Population
from lightning_hypernet.values import choice, texts


class L2(Condition):
    r"""A penalty on the size of weights.

    .. math:: L_s \mathrel{+}= \sum_j \lambda_j w_{sj}^2

    over the weights of network s, as the target has them: one decay for all, one for each parameter or one for each weight.

    References:
        | Stochastic Hyperparameter Optimization through Hypernetworks (Lorraine and Duvenaud, 2018)
        | https://arxiv.org/abs/1802.09419

    Args:
        range: Of the decays.
        parameters: Glob patterns of the generated parameters.
        per: What has a decay of its own: ``"all"``, ``"parameter"`` or ``"weight"``.
    """

    least: ClassVar[float] = 0.0

    def __init__(self, range: Range, parameters: str | Sequence[str] = "*", per: str = "all") -> None:
        super().__init__(range)
        self.parameters = texts("parameters", parameters, "pattern")
        self.per = choice("per", per, ("all", "parameter", "weight"))
        self._sizes: dict[str, int] = {}

    def count(self, target: nn.Module) -> int:
        """How many decays there are.

        Raises:
            ValueError: If the patterns match no parameter.
        """
        named = {name: value.numel() for name, value in target.named_parameters()}
        self._sizes = {
            name: size for name, size in named.items() if any(fnmatch.fnmatchcase(name, one) for one in self.parameters)
        }
        if not self._sizes:
            raise ValueError(f"no parameter matches {', '.join(self.parameters)}; there are {', '.join(named)}")
        return {"all": 1, "parameter": len(self._sizes), "weight": sum(self._sizes.values())}[self.per]

    def penalty(self, population: Population, values: Tensor) -> Tensor:
        """The penalty of every network, ``(S,)``, of decays ``(S, count)``.

        Raises:
            ValueError: If a parameter is not generated.
        """
        if missing := [name for name in self._sizes if name not in population.weights]:
            raise ValueError(f"{missing[0]} is not generated, so no condition can decay it: leave it out of parameters")
        squares = [population.weights[name].flatten(1).square() for name in self._sizes]
        if self.per == "weight":
            return (values * torch.cat(squares, 1)).sum(1)
        sums = torch.stack([square.sum(1) for square in squares], 1)
        return (values * sums).sum(1)
