"""Ranges: where a hyperparameter lies, and the numbers of a condition that stand for it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from lightning_hypernet.values import guess, number, real, shown


class Range(ABC):
    """Values of a hyperparameter, each written as `width` numbers of a condition.

    A search moves a point, `width` numbers too, around which `around` draws conditions.
    """

    width: int = 1

    @abstractmethod
    def draw(self, count: int, values: int, source: Generator) -> Tensor:
        """Conditions drawn evenly over the range: ``(count, values * width)``, of that many values each."""

    @abstractmethod
    def around(self, point: Tensor, spread: float, count: int, source: Generator) -> Tensor:
        """Conditions drawn near a point ``(values * width,)``: ``(count, values * width)``, differentiable in the point."""

    @abstractmethod
    def values(self, condition: Tensor) -> Tensor:
        """What conditions ``(..., values * width)`` stand for, ``(..., values)``."""

    @abstractmethod
    def point(self, value: Any) -> Tensor:
        """The point that stands for one value, ``(width,)``.

        Raises:
            ValueError: If the value is not in the range.
        """

    @abstractmethod
    def within(self, point: Tensor) -> Tensor:
        """The nearest point that lies in the range."""

    @abstractmethod
    def best(self, point: Tensor) -> Tensor:
        """The condition at a point, without noise: both ``(values * width,)``."""

    @abstractmethod
    def bounds(self) -> tuple[float, float] | None:
        """The least and the greatest value; None where values are no numbers."""

    def said(self, value: Tensor) -> Any:
        """A value, a scalar tensor, as people write it."""
        return float(value)


class Uniform(Range):
    """Numbers between two bounds; the condition runs from -1 to 1.

    Args:
        low: The least.
        high: The greatest.

    Raises:
        ValueError: If the bounds are no finite numbers, or not in order.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = real("the lower bound", low), real("the upper bound", high)
        if self.low >= self.high:
            raise ValueError(f"the lower bound of a range must be below the upper one, and {self.low:g} to {self.high:g} came")

    def __repr__(self) -> str:
        return f"uniform({self.low:g}, {self.high:g})"

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value."""
        low, high = self.values(torch.tensor([-1.0, 1.0], dtype=torch.float64)).tolist()
        return low, high

    def draw(self, count: int, values: int, source: Generator) -> Tensor:
        """Conditions drawn evenly: ``(count, values)``."""
        return torch.rand(count, values, generator=source) * 2 - 1

    def around(self, point: Tensor, spread: float, count: int, source: Generator) -> Tensor:
        """Conditions drawn from a normal distribution around a point ``(values,)``, held within the range."""
        noise = torch.randn(count, len(point), generator=source).to(point)
        return point + ((point.detach() + spread * noise).clamp(-1, 1) - point.detach())

    def values(self, condition: Tensor) -> Tensor:
        """What conditions stand for."""
        return self.low + (condition.clamp(-1, 1) + 1) / 2 * (self.high - self.low)

    def point(self, value: Any) -> Tensor:
        """The point of a value, ``(1,)``."""
        value = real("a start", value, self.low, self.high)
        return torch.tensor([2 * (value - self.low) / (self.high - self.low) - 1])

    def within(self, point: Tensor) -> Tensor:
        """The nearest point in the range."""
        return point.clamp(-1, 1)

    def best(self, point: Tensor) -> Tensor:
        """The condition at a point: itself."""
        return point


class LogUniform(Uniform):
    """Positive numbers, even in their logarithm.

    Args:
        low: The least, above 0.
        high: The greatest.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__(
            math.log(real("the lower bound", low, 0, above=True)), math.log(real("the upper bound", high, 0, above=True))
        )

    def __repr__(self) -> str:
        return f"log_uniform({math.exp(self.low):g}, {math.exp(self.high):g})"

    def values(self, condition: Tensor) -> Tensor:
        """What conditions stand for."""
        return super().values(condition).exp()

    def point(self, value: Any) -> Tensor:
        """The point of a value, ``(1,)``."""
        return super().point(
            math.log(real("a start", value, math.exp(self.low) * (1 - 1e-9), math.exp(self.high) * (1 + 1e-9)))
        )


class Choice(Range):
    """One of several values; the condition has a one at its place and zeros elsewhere.

    A search moves logits: conditions are drawn from their softmax, with the straight-through gradient.

    Args:
        options: The values, two or more.

    Raises:
        ValueError: If there are fewer.
    """

    def __init__(self, *options: Any) -> None:
        if len(options) < 2:
            raise ValueError(f"a choice is made of two values or more, not of {shown(options)}")
        read = [number(one) for one in options]
        self._numeric = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in read)
        self.options, self.width = tuple(read) if self._numeric else options, len(options)

    def __repr__(self) -> str:
        return f"choice({', '.join(map(repr, self.options))})"

    def bounds(self) -> tuple[float, float] | None:
        """The least and the greatest value; None where values are no numbers."""
        return (min(self.options), max(self.options)) if self._numeric else None

    def draw(self, count: int, values: int, source: Generator) -> Tensor:
        """Conditions drawn evenly: ``(count, values * width)``."""
        drawn = torch.randint(self.width, (count, values), generator=source)
        return F.one_hot(drawn, self.width).flatten(1).to(torch.get_default_dtype())

    def around(self, point: Tensor, spread: float, count: int, source: Generator) -> Tensor:
        """Conditions drawn from the softmax of logits ``(values * width,)``; `spread` has no part in it."""
        shares = point.view(-1, self.width).softmax(-1)
        drawn = torch.multinomial(shares.detach().cpu(), count, replacement=True, generator=source).T.to(point.device)
        sharp = F.one_hot(drawn, self.width).to(point)
        return (sharp + shares - shares.detach()).flatten(1)

    def values(self, condition: Tensor) -> Tensor:
        """What conditions stand for: the values if all are numbers, else their places."""
        places = condition.detach().unflatten(-1, (-1, self.width)).argmax(-1)
        return torch.tensor(self.options, device=condition.device).to(condition)[places] if self._numeric else places

    def point(self, value: Any) -> Tensor:
        """Logits that prefer a value, ``(width,)``."""
        if value not in self.options:
            raise ValueError(f"a start must be one of {', '.join(map(repr, self.options))}, not {shown(value)}")
        return F.one_hot(torch.tensor(self.options.index(value)), self.width).to(torch.get_default_dtype())

    def within(self, point: Tensor) -> Tensor:
        """The point itself."""
        return point

    def best(self, point: Tensor) -> Tensor:
        """A one at the place of the greatest logit of every value."""
        return F.one_hot(point.view(-1, self.width).argmax(-1), self.width).to(point).flatten()

    def said(self, value: Tensor) -> Any:
        """A value as it was given."""
        return float(value) if self._numeric else self.options[int(value)]


_RANGES: dict[str, type[Range]] = {"uniform": Uniform, "log_uniform": LogUniform, "choice": Choice}


def uniform(low: float, high: float) -> Uniform:
    """Numbers between two bounds."""
    return Uniform(low, high)


def log_uniform(low: float, high: float) -> LogUniform:
    """Positive numbers between two bounds, even in their logarithm."""
    return LogUniform(low, high)


def choice(*options: Any) -> Choice:
    """One of several values."""
    return Choice(*options)


def read_range(name: str, given: Any) -> Range:
    """A range that was given as such, or in plain values: ``{"log_uniform": [1e-4, 1]}``.

    Args:
        name: Of the hyperparameter.
        given: The range.

    Raises:
        TypeError: If it is none.
        ValueError: If its name is unknown or its bounds are none.
    """
    if isinstance(given, Range):
        return given
    if not isinstance(given, Mapping) or len(given) != 1:
        raise TypeError(
            f"the range of {name!r} must be one, as uniform(0, 1) gives, or a mapping as {{'log_uniform': [1e-4, 1]}}, "
            f"not {shown(given)}"
        )
    (kind, bounds), *_ = given.items()
    if kind not in _RANGES:
        raise ValueError(
            f"the range of {name!r} is unknown: {shown(kind)}{guess(kind, _RANGES)}; there are {', '.join(_RANGES)}"
        )
    if not isinstance(bounds, Sequence) or isinstance(bounds, str) or (kind != "choice" and len(bounds) != 2):
        raise TypeError(
            f"the range of {name!r} must list {'its values' if kind == 'choice' else 'two bounds'}, not {shown(bounds)}"
        )
    try:
        return _RANGES[kind](*bounds)
    except ValueError as error:
        raise ValueError(f"the range of {name!r}: {error}") from None
