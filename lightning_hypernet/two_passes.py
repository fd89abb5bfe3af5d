"""TwoPasses: the gradient of a step, collected a few networks at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lightning_hypernet.diversity import DiversityLoss, WeightedDiversity
from lightning_hypernet.generator.generator import Generator
from lightning_hypernet.gradients import Gradients, handed_out, pulled
from lightning_hypernet.groups import Group, GroupedPopulation, ReadPopulation
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.population import Population
from lightning_hypernet.values import choice

LARGE = 1 << 30
"""Bytes of the weights of all networks above which ``"auto"`` takes two passes."""
_GROUP = 1 << 27
"""Bytes of the weights of a group, unless a single network has more."""
_TOGETHER = 8
"""Networks in a group at most, since what they keep for the backward pass may be larger than their weights."""
_ONE = "or backward='one_pass'"


class TwoPasses:
    r"""The gradient of a step's losses, exact, while a few networks at a time have weights and a graph.

    The features f of all S networks, what the last layers of the generator are given, are computed once with their graph. Group
    by group, the last layers give weights, the networks run, and for each group g the gradient of its part of the loss

    .. math:: L_g = \sum_{i \in g} a_i L_i + \langle \mathrm{parts}_g, \partial D / \partial \mathrm{parts}_g \rangle

    with respect to f and to every trained parameter is added to what there is; then its graph is released. Here
    :math:`a_i` are the shares of the batch, and D are the diversity losses, whose gradient with respect to what they read of
    the weights is known from a first pass without gradient. What is returned is the loss, whose backward pass hands out what
    was collected: to the parameters, and to the features, whose graph goes on.

    Args:
        hypernet: The Hypernet.
        diversity: Its diversity losses.
    """

    def __init__(self, hypernet: Hypernet, diversity: WeightedDiversity) -> None:
        self.hypernet, self.diversity = hypernet, diversity
        self.size = group_size(hypernet)
        self.values: dict[str, Tensor] | None = None
        self._gradients = Gradients()
        self._losses: list[tuple[Tensor, float]] = []
        self._index, self._share = 0, 0.0
        self._pulled: set[int] = set()
        self._seeds: dict[tuple[str, ...] | str, list[Tensor | None]] = {}
        self._beside: list[tuple[Tensor, Tensor]] = []

    def take(self, index: int, result: Any, share: float) -> Any:
        """Take what the step of a network returned.

        Args:
            index: Which network.
            result: The loss, a mapping with it, or None.
            share: The network's share of the batch.

        Returns:
            The same without its graph.
        """
        loss = result.get("loss") if isinstance(result, Mapping) else result
        if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
            self._losses.append((loss, share))
        self._index, self._share = index, self._share + (0.0 if result is None else share)
        if (index + 1) % self.size == 0:
            self._pull(index)
        return tree_map_only(Tensor, torch.detach, result)

    def hand_out(self, result: Any) -> Any:
        """Give the mean of all results a loss whose backward pass gives every parameter its gradient.

        Args:
            result: A loss or a mapping with it.

        Returns:
            The same, with the gradients of the losses and of the weighted diversity losses.
        """
        if self._losses:
            self._pull(self._index)
        self._pull_diversity()
        if abs(self._share - 1) > 1e-6:
            self._gradients.divide(self._share)
            self._pulled.clear()
            self._pull_diversity(1 - 1 / self._share)
        self._gradients.add(self._beside)
        loss = result.get("loss") if isinstance(result, Mapping) else result
        sources, gradients = self._gradients.to_originals(self._population)
        if not (sources and isinstance(loss, Tensor) and loss.numel() == 1):
            return result
        handed = handed_out(loss, gradients, sources)
        return {**result, "loss": handed} if isinstance(result, Mapping) else handed

    @property
    def _population(self) -> GroupedPopulation | None:
        population = self.hypernet.population
        return population if isinstance(population, GroupedPopulation) else None

    def _pull_diversity(self, factor: float = 1.0) -> None:
        """Add the gradients of the diversity losses for all groups that have not given theirs."""
        population = self._population
        for rows in population.networks.groups if population is not None and self.diversity.losses else ():
            if rows.start not in self._pulled:
                self._pull(rows.start, factor)

    def _pull(self, index: int, factor: float = 1.0) -> None:
        """Add the gradients of the losses at hand, and of a group's part in the diversity losses."""
        outputs, seeds = [loss for loss, _ in self._losses], [torch.full_like(loss, share) for loss, share in self._losses]
        self._losses = []
        population, group = self._population, None
        if population is not None:
            group = population.networks.group(index)
            if group.rows.start not in self._pulled and self.diversity.losses:
                for output, seed in self._parts(population, group):
                    outputs.append(output)
                    seeds.append(seed * factor)
            self._pulled.add(group.rows.start)
        self._gradients.add(pulled(outputs, seeds), group)
        if population is not None:
            population.networks.release()

    def _parts(self, population: GroupedPopulation, group: Group) -> Iterator[tuple[Tensor, Tensor]]:
        """What the diversity losses read of a group, and their gradients there."""
        if self.values is None:
            self._read(population)
        weights = group.networks.weights
        for read, gradients in self._seeds.items():
            outputs = [weights[read]] if isinstance(read, str) else population.parts_of(weights, read)
            for output, gradient in zip(outputs, gradients, strict=True):
                if gradient is not None:
                    yield output, gradient[group.rows]

    def _read(self, population: GroupedPopulation) -> None:
        """The first pass: the values of the diversity losses, and their gradients where they read weights."""
        read = ReadPopulation(**{one.name: getattr(population, one.name) for one in fields(Population)})
        values = self.diversity(read)
        self.values = {name: value.detach() for name, value in values.items()}
        total = self.diversity.total(values)
        pairs = pulled([total], [torch.ones_like(total)]) if total.requires_grad else []
        found = {id(leaf): gradient for leaf, gradient in pairs}
        leaves = {id(leaf) for some in read.leaves.values() for leaf in some}
        self._seeds = {key: [found.get(id(leaf)) for leaf in some] for key, some in read.leaves.items()}
        self._beside = [(leaf, gradient) for leaf, gradient in pairs if id(leaf) not in leaves]


def group_size(hypernet: Hypernet) -> int:
    """How many networks are together in a group."""
    return min(_TOGETHER, max(1, _GROUP // max(1, _bytes(hypernet))))


def _bytes(hypernet: Hypernet) -> int:
    """Bytes of the weights of one network."""
    kind = next(hypernet.generator.parameters(), None)
    return hypernet.banks.weights * (4 if kind is None else kind.element_size())


def check_backward(backward: str, dealt: bool, diversity: WeightedDiversity) -> None:
    """See that a way of taking gradients exists, and fits the other options.

    Args:
        backward: ``"one_pass"``, ``"two_pass"`` or ``"auto"``.
        dealt: Whether the batch is dealt out before the step.
        diversity: The diversity losses.

    Raises:
        ValueError: If it does not.
    """
    choice("backward", backward, ("one_pass", "two_pass", "auto"))
    if backward != "two_pass":
        return
    if not dealt:
        raise ValueError(f"two passes need each network's own loss: set deal='batch', {_ONE}")
    if names := _reading_outputs(diversity):
        raise ValueError(
            f"the diversity loss {names[0]!r} reads outputs, or does not say reads_outputs = False, and two "
            f"passes keep no outputs of all networks: choose one that reads weights, {_ONE}"
        )


def takes_two_passes(backward: str, dealt: bool, hypernet: Hypernet, scaled: bool) -> bool:
    """Whether a training takes two passes.

    Args:
        backward: As of `check_backward`.
        dealt: Likewise.
        hypernet: The Hypernet, with its diversity losses.
        scaled: Whether gradients are scaled, as half precision needs it.

    Raises:
        ValueError: If it can't, though ``"two_pass"`` was asked for.
    """
    if backward == "one_pass":
        return False
    generator, diversity = hypernet.generator, hypernet.diversity
    assert isinstance(diversity, WeightedDiversity)
    check_backward(backward, dealt, diversity)
    splits = isinstance(generator, Generator) and type(generator).forward is Generator.forward
    if hypernet.conditions is not None:
        if backward == "two_pass":
            raise ValueError(
                f"conditions join the loss of all networks at once, and two passes have none: leave them out, {_ONE}"
            )
        return False
    if backward == "auto":
        large = hypernet.samples * _bytes(hypernet) > LARGE
        return large and dealt and splits and not scaled and not _reading_outputs(diversity)
    if not splits:
        raise ValueError(
            f"two passes take the built-in generator apart, and distribution={hypernet.options['distribution']!r} is a "
            f"{type(generator).__name__}: set distribution='generator', {_ONE}"
        )
    if scaled:
        raise ValueError(
            f"two passes take gradients before they are scaled, which half precision needs: set precision='bf16-mixed', {_ONE}"
        )
    return True


def is_scaled(trainer: pl.Trainer) -> bool:
    """Whether gradients are scaled, as half precision needs it."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _reading_outputs(diversity: WeightedDiversity) -> list[str]:
    """The names of the losses that read outputs, or may."""
    return [name for name, loss in diversity.losses.items() if not isinstance(loss, DiversityLoss) or loss.reads_outputs]
