"""Conditions: the hyperparameters that networks are generated for, as the numbers of one condition."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lightning_hypernet.conditions.base import Condition
from lightning_hypernet.population import Population
from lightning_hypernet.values import real, shown


def recipe_of_conditions(conditions: Mapping[str, Condition]) -> dict[str, str]:
    """What conditions are, in words that are the same for those that do the same."""
    return {name: repr(condition) for name, condition in conditions.items()}


class Conditions:
    """Named hyperparameters, one beside the other in the context of `Latents`.

    Args:
        conditions: For every name its condition.
        target: The target, before it is wrapped.

    Attributes:
        dim: Numbers in a condition of all.
        point: Where a search stands, ``(dim,)``, and conditions are drawn around; None: they are drawn evenly.
        spread: Standard deviation of a draw around the point; ranges run from -1 to 1.
    """

    def __init__(self, conditions: Mapping[str, Condition], target: nn.Module) -> None:
        self._conditions = copy.deepcopy(dict(conditions))  # what a condition keeps of a target is this target's
        self.recipe = recipe_of_conditions(conditions)
        single = [type(condition).__name__ for condition in conditions.values() if condition.single]
        if len(set(single)) < len(single):
            raise ValueError(f"two conditions are {single[0]}, which there may be one of: leave one out")
        self._counts: dict[str, int] = {}
        for name, condition in self._conditions.items():
            try:
                self._counts[name] = condition.count(target)
            except ValueError as error:
                raise ValueError(f"the condition {name!r}: {error}") from error
        self._widths = [self._counts[name] * condition.range.width for name, condition in conditions.items()]
        self.dim = sum(self._widths)
        self.seed, self.draws = torch.initial_seed() % 2**62, 0
        self.point: Tensor | None = None
        self.spread = 0.0

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._conditions)

    def __getitem__(self, name: str) -> Condition:
        """A condition by its name."""
        return self._conditions[name]

    def _parts(self, context: Tensor) -> Iterator[tuple[str, Condition, Tensor]]:
        pairs = zip(self._conditions.items(), context.split(self._widths, dim=-1), strict=True)
        return ((name, condition, part) for (name, condition), part in pairs)

    def draw(self, count: int, point: Tensor | None = None) -> Tensor:
        """Draw conditions, ``(count, dim)``: evenly, or around where the search stands.

        Every draw is seeded by the number of the draw and the rank, and leaves the global random numbers alone.

        Args:
            count: How many.
            point: Where to draw around, without spread, differentiably; None: as said.
        """
        rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
        source = torch.Generator().manual_seed(random.Random(f"{self.seed}-{self.draws}-{rank}").getrandbits(62))
        self.draws += 1
        where, spread = (self.point, self.spread) if point is None else (point, 0.0)
        drawn = []
        for _, condition, part in self._parts(torch.zeros(self.dim) if where is None else where):
            rows = 1 if condition.shared else count
            values = len(part) // condition.range.width
            one = (
                condition.range.draw(rows, values, source)
                if where is None
                else condition.range.around(part, spread, rows, source)
            )
            drawn.append(one.expand(count, -1))
        return torch.cat(drawn, dim=1)

    def values(self, context: Tensor) -> dict[str, Tensor]:
        """What conditions ``(..., dim)`` stand for: for every name ``(..., count)``, or ``(...)`` where the count is 1.

        Of a choice of values that are no numbers it is their places.
        """
        read = {name: condition.range.values(part) for name, condition, part in self._parts(context)}
        return {name: value[..., 0] if self._counts[name] == 1 else value for name, value in read.items()}

    def starting(self, start: Mapping[str, Any] | None = None) -> Tensor:
        """The point of values by their names, ``(dim,)``; in the middle of its range what is not named.

        Raises:
            ValueError: If a name is unknown or a value lies outside of its range.
        """
        if not isinstance(start or {}, Mapping):
            raise ValueError(f"start must be a mapping of names to values, not {shown(start)}")
        start = dict(start or {})
        if odd := [name for name in start if name not in self._conditions]:
            raise ValueError(f"there is no condition {odd[0]!r} to start from; there are {', '.join(self._conditions)}")
        point = torch.zeros(self.dim)
        for name, condition, part in self._parts(point):
            if name in start:
                try:
                    values = start[name] if isinstance(start[name], list) else [start[name]] * self._counts[name]
                    if len(values) != self._counts[name]:
                        raise ValueError(f"it has {self._counts[name]} values, and start lists {len(values)}")
                    part.copy_(torch.cat([condition.range.point(value) for value in values]))
                except ValueError as error:
                    raise ValueError(f"the condition {name!r}: {error}") from None
        return point

    def along(self, context: Tensor, name: str, points: int) -> Tensor:
        """Conditions ``(points, dim)`` that differ from one in a single hyperparameter, which runs over its range.

        Raises:
            ValueError: If it has several values or none between its bounds.
        """
        if name not in self._conditions:
            raise ValueError(f"there is no condition {name!r}; there are {', '.join(self._conditions)}")
        if self._counts[name] > 1:
            raise ValueError(f"the condition {name!r} has {self._counts[name]} values, and a curve is drawn over one")
        range = self._conditions[name].range
        choices = torch.eye(range.width) if range.width > 1 else torch.linspace(-1, 1, points)[:, None]
        rows = [list(context.detach().split(self._widths)) for _ in choices]
        for row, choice in zip(rows, choices, strict=True):
            row[list(self._conditions).index(name)] = choice.to(context)
        return torch.stack([torch.cat(row) for row in rows])

    def within(self, point: Tensor) -> Tensor:
        """The nearest point in all ranges."""
        return torch.cat([condition.range.within(part) for _, condition, part in self._parts(point)])

    def best(self, point: Tensor) -> Tensor:
        """The condition at a point, ``(dim,)``, without noise."""
        return torch.cat([condition.range.best(part) for _, condition, part in self._parts(point.detach())])

    def said(self, context: Tensor) -> dict[str, Any]:
        """What one condition ``(dim,)`` stands for, as people write it; a list where a name has several values."""
        said = {}
        for name, condition, part in self._parts(context.detach()):
            values = [condition.range.said(value) for value in condition.range.values(part)]
            said[name] = values[0] if len(values) == 1 else values
        return said

    def settings(self, context: Tensor) -> dict[tuple[str, str], list[float]]:
        """What is set in the modules of every network, for the path of a module and an attribute a number a network."""
        found: dict[tuple[str, str], list[float]] = {}
        for name, condition, part in self._parts(context.detach()):
            for place, numbers in condition.settings(condition.range.values(part)).items():
                if place in found:
                    raise ValueError(f"two conditions set {'.'.join(place)}, {name!r} is one of them: leave one out")
                found[place] = numbers.tolist()
        return found

    def penalty(self, population: Population) -> Tensor | None:
        """What joins the loss, a scalar: the mean over networks of what joins each one's; None: nothing does."""
        context = population.latents.context
        assert context is not None
        terms = [condition.penalty(population, condition.range.values(part)) for _, condition, part in self._parts(context)]
        added = [term.mean() for term in terms if term is not None]
        return torch.stack(added).sum() if added else None

    def weights(self, context: Tensor) -> dict[str, Tensor]:
        """The weights of diversity losses, scalars by the losses' names, of ``(S, dim)``."""
        shared = [(condition, part[0]) for _, condition, part in self._parts(context.detach()) if condition.shared]
        pairs = [pair for one, part in shared for pair in one.weights(one.range.values(part)).items()]
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError(f"two conditions weigh one diversity loss of {', '.join(found)}: leave one out")
        return found

    @contextmanager
    def around_step(self, context: Tensor, of_examples: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
        """What a training step runs in, given the conditions of its networks ``(S, dim)``; see `Condition.around_step`."""
        with ExitStack() as stack:
            for _, condition, part in self._parts(context.detach()):
                stack.enter_context(condition.around_step(condition.range.values(part), of_examples))
            yield

    def state_dict(self) -> dict[str, Any]:
        """The random numbers, and where the search stands."""
        return {"seed": self.seed, "draws": self.draws, "point": self.point, "spread": self.spread, "recipe": self.recipe}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue as a checkpoint left off, bit for bit.

        Raises:
            ValueError: If it was written for other conditions.
        """
        point = state["point"]
        if state["recipe"] != self.recipe or (point is not None and point.shape != (self.dim,)):
            raise ValueError(f"the checkpoint was written with the conditions {state['recipe']}, not {self.recipe}")
        self.seed, self.draws, self.point = int(state["seed"]), int(state["draws"]), point
        self.spread = real("the checkpoint's spread", state["spread"], 0)
