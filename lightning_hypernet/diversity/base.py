"""DiversityLoss, what every diversity loss is, and the weighted sum of several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_hypernet.generator import WeightDistribution
from lightning_hypernet.population import Population, check_population
from lightning_hypernet.values import whole


class DiversityLoss(nn.Module, ABC):
    """A scalar of a population; low = diverse.

    It may own parameters: they join the optimizer. `default_weight` is what it is multiplied with where the user names it
    without a weight. `reads_outputs` says whether it reads what networks return, or may; one that reads nothing but latents and
    weights says False, and goes with ``backward="two_pass"``. `least_networks` says how many of them a step draws at least
    where the user sets no number; two of every component are drawn anyway. `parts` holds what is logged beside the value, by
    name.
    """

    default_weight: ClassVar[float] = 1e-3
    least_networks: ClassVar[int] = 8
    reads_outputs: bool = True
    parts: Mapping[str, Tensor] = MappingProxyType({})

    def check(self, distribution: type[WeightDistribution], dealt: bool) -> None:
        """See what kind of weights there will be, before anything is built.

        Args:
            distribution: What makes them.
            dealt: Whether a function deals the batch out, so that every network may see all of it.

        Raises:
            ValueError: If the loss does not go with them.
        """

    def prepare(self, population: Population) -> None:
        """See a first population before the optimizer exists; a loss builds here what depends on sizes."""

    def see_data(self, examples: int | None) -> None:
        """See how many training examples there are, when training starts; None: that is not known."""

    def __call__(self, population: Population) -> Any:
        """The value for a population; a TypeError for anything else."""
        check_population(population)
        return super().__call__(population)

    @abstractmethod
    def forward(self, population: Population) -> Tensor:
        """Map a population to a scalar. What of it is read is computed, and nothing else."""


class WeightedDiversity(nn.Module):
    """A weighted sum of diversity losses.

    Args:
        losses: For every name its loss.
        weights: For every name its weight.
        arguments: For every name what the loss was built with.
    """

    def __init__(
        self, losses: Mapping[str, DiversityLoss], weights: Mapping[str, float], arguments: Mapping[str, Mapping[str, Any]]
    ) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)
        self.arguments = {name: dict(given) for name, given in arguments.items()}

    def same(self, other: nn.Module | None) -> bool:
        """Whether another module is the same sum of losses, each built with the same arguments."""
        return isinstance(other, WeightedDiversity) and (self.weights, self.arguments) == (other.weights, other.arguments)

    def check(self, distribution: type[WeightDistribution], dealt: bool) -> None:
        """Let every loss see what kind of weights there will be."""
        for loss in self._all():
            loss.check(distribution, dealt)

    def prepare(self, population: Population) -> None:
        """Let every loss see a first population."""
        for loss in self._all():
            loss.prepare(population)

    def see_data(self, examples: int | None) -> None:
        """Let every loss see how many training examples there are."""
        for loss in self._all():
            loss.see_data(examples)

    @property
    def least_networks(self) -> int:
        """How many networks the losses compare at least; 0: there are none.

        Raises:
            ValueError: If a loss says another thing than a whole number.
        """
        pairs = zip(self.losses, self._all(), strict=True)
        return max((whole(f"least_networks of {name!r}", loss.least_networks) for name, loss in pairs), default=0)

    def _all(self) -> list[DiversityLoss]:
        return [loss for loss in self.losses.values() if isinstance(loss, DiversityLoss)]

    def forward(self, population: Population) -> dict[str, Tensor]:
        """The value of every loss, by name, before it is weighted.

        Raises:
            RuntimeError: If a loss raises; the message names it.
            ValueError: If a loss is no scalar or is NaN.
        """
        values = {}
        for name, loss in self.losses.items():
            try:
                value = loss(population)
            except Exception as error:
                raise RuntimeError(f"the diversity loss {name!r} failed: {error}") from error
            if not isinstance(value, Tensor) or value.ndim:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"the diversity loss {name!r} must return a scalar tensor, not {shape}")
            if not value.isfinite():
                kind = "NaN" if value.isnan() else "infinite"
                raise ValueError(f"the diversity loss {name!r} is {kind}; lower its weight or the learning rate")
            values[name] = value
        return values

    def parts(self) -> dict[str, Tensor]:
        """What losses log beside their value, as ``name/part``."""
        pairs = zip(self.losses, self._all(), strict=True)
        return {f"{name}/{part}": value for name, loss in pairs for part, value in loss.parts.items()}

    def total(self, values: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Weigh the values of `forward` and add them.

        Args:
            values: For every name its value.
            weights: What takes the place of some weights.
        """
        chosen: dict[str, Any] = {**self.weights, **(weights or {})}
        weighted = {name: chosen[name] * value for name, value in values.items()}
        for name, value in weighted.items():
            if not value.isfinite():
                raise ValueError(f"the diversity loss {name!r} times its weight {float(chosen[name]):g} is infinite: lower it")
        total: Tensor = sum(weighted.values())
        return total
