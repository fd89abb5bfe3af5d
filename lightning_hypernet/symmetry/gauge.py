"""Gauges: one representative out of every class of weights that compute the same function."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_hypernet.markers import hookimpl
from lightning_hypernet.symmetry.graph import SymmetryError
from lightning_hypernet.symmetry.order import Block
from lightning_hypernet.symmetry.scale import ChannelGroups, Level, picked


class Gauge(ABC):
    """A rule that picks one representative out of every class of weights that compute the same function."""

    @abstractmethod
    def __call__(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Map weights ``{name: (S, *shape)}`` to gauge-fixed weights of the same functions."""

    def select(self, weights: Mapping[str, Tensor], names: Collection[str]) -> Mapping[str, Tensor]:
        """Some of the gauge-fixed weights; a gauge that can fix them alone overrides this."""
        gauged = self(weights)
        return {name: gauged[name] for name in names}

    def reads(self, weights: Collection[str], names: Collection[str]) -> Collection[str]:
        """Which of the weights `select` reads to fix those that are named; all, where a gauge doesn't know."""
        return weights


class NoGauge(Gauge):
    """Leaves weights as they are."""

    def __call__(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights."""
        return weights


class ComposedGauge(Gauge):
    """Several gauges, one after the other."""

    def __init__(self, *gauges: Gauge) -> None:
        self.gauges = gauges

    def __call__(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Apply the gauges in order."""
        for gauge in self.gauges:
            weights = gauge(weights)
        return weights

    def select(self, weights: Mapping[str, Tensor], names: Collection[str]) -> Mapping[str, Tensor]:
        """Some of the gauge-fixed weights; every gauge fixes what the next one reads."""
        wanted = [names]
        for gauge in reversed(self.gauges[1:]):
            wanted.append(gauge.reads(weights.keys(), wanted[-1]))
        for gauge, some in zip(self.gauges, reversed(wanted), strict=True):
            weights = gauge.select(weights, some)
        return weights


class _Squares(torch.autograd.Function):
    """Sums of squares over some axes, whose gradient is one product."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, axes: list[int]) -> Tensor:
        ctx.save_for_backward(weight)
        exact = torch.promote_types(weight.dtype, torch.float32)
        norm: Tensor = torch.linalg.vector_norm(weight, dim=axes, keepdim=True, dtype=exact)
        return norm.square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return (weight * (2 * gradient)).to(weight.dtype), None


@dataclass(frozen=True)
class _Part:
    """What one parameter adds to the squares of a level.

    Args:
        name: Name of the parameter.
        flat: Which group each row belongs to.
        axes: The axes that are summed, of ``(S, *shape)``.
        alone: Those of them that can be summed before scales are read.
        read: Which scales it is read with, if any: columns of those found before.
    """

    name: str
    flat: Tensor
    axes: list[int]
    alone: list[int]
    read: Tensor | None


@dataclass(frozen=True)
class _Recipe:
    """How the scales of one level are computed.

    Args:
        parts: What each parameter adds.
        whole: ``(n,)``, the sum of squares at which the scale of a group is 1.
    """

    parts: list[_Part]
    whole: Tensor

    @property
    def count(self) -> int:
        """Number of groups."""
        return len(self.whole)

    def factors(self, weights: Mapping[str, Tensor], found: Tensor) -> Tensor:
        """What the producers of the level are divided by, after the levels before it are fixed: ``(S, n)``."""
        squares = found.new_zeros(len(found), self.count + 1)
        for part in self.parts:
            weight = weights[part.name]
            squared = _Squares.apply(weight, part.alone) if part.alone else weight.to(found.dtype).square()
            if part.read is not None:
                known = torch.cat([found, found.new_ones(len(found), 1)], dim=1)
                squared = squared * picked(known, part.read).square()
            summed = squared.sum(part.axes) if part.axes else squared
            squares = squares.index_add(1, part.flat, summed.reshape(len(weight), -1))
        ratio = squares[:, : self.count] / self.whole
        return torch.where(ratio > 0, ratio, 1.0).sqrt()


class ScaleGauge(Gauge):
    r"""Fixes the scale of every channel group: what writes it first gets the target's own root mean square.

    In topological order, for each group g with its first producers' numbers :math:`w_{g,k}`, the bias included,

    .. math:: s_g = \frac{1}{c_l} \sqrt{\tfrac{1}{n_g} \sum_k w_{g,k}^2},
        \qquad c_l^2 = \frac{\sum_p n_p \, r_p^2}{\sum_p n_p}

    divides all producers of the group and multiplies its consumers. The constant :math:`c_l` is that of the groups which one
    operation leads: of every parameter p they take :math:`n_p` numbers, and :math:`r_p` is the root mean square of the
    parameter at the start, so that a fresh target is nearly left as it is and the eps of its norm layers does no more than it
    did. All groups of an operation share it, and so their order does not matter. Where that would be 0, it is 1.

    With all constants 1, on a plain network, that is the paper's rule: the sum of squares of a filter equals its number of
    elements. A group whose first producers are all zero keeps its scale.

    References:
        | A Generative Model for Sampling High-Performance and Diverse Weights for Neural Networks (Deutsch et al., 2019)
        | https://arxiv.org/abs/1905.02898, section 3.2.2

    Args:
        groups: The channel groups of the target.
        scales: For every parameter the root mean square of the target's own values; None: all constants are 1.
    """

    def __init__(self, groups: ChannelGroups, scales: Mapping[str, float] | None = None) -> None:
        self.groups = groups
        self.scales = None if scales is None else dict(scales)
        self._recipes: dict[tuple[torch.device, torch.dtype], list[_Recipe]] = {}

    def __call__(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Map weights ``{name: (S, *shape)}`` to gauge-fixed weights of the same functions."""
        return self.select(weights, list(weights))

    def select(self, weights: Mapping[str, Tensor], names: Collection[str]) -> Mapping[str, Tensor]:
        """Some of the gauge-fixed weights; the scale of groups that don't touch them is left alone."""
        factors = self.factors(weights, self._levels_of(names))
        return self.groups.transform({name: weights[name] for name in names}, 1 / factors)

    def _levels_of(self, names: Collection[str]) -> list[bool]:
        """Which levels fix the scales that some parameters are written and read with, and those that these need in turn."""
        needed = {level for name in names for level in self._touched.get(name, ())}
        for index in reversed(range(len(self.groups.levels))):
            if index in needed:
                needed.update(self._read[index])
        return [index in needed for index in range(len(self.groups.levels))]

    @cached_property
    def _touched(self) -> dict[str, frozenset[int]]:
        """For every parameter the levels whose scales it is written or read with."""
        return {
            name: self._levels_in(written) | self._levels_in(self.groups.consumers[name])
            for name, written in self.groups.producers.items()
        }

    @cached_property
    def _read(self) -> list[frozenset[int]]:
        """For every level those that its parameters are read with."""
        consumers = self.groups.consumers
        return [frozenset().union(*(self._levels_in(consumers[name]) for name in level.rows)) for level in self.groups.levels]

    def _levels_in(self, ids: Tensor) -> frozenset[int]:
        """The levels of groups."""
        own = torch.full((self.groups.count + 1,), -1)
        for index, level in enumerate(self.groups.levels):
            own[level.groups] = index
        return frozenset(own[ids.reshape(-1)].tolist()) - {-1}

    def factors(self, weights: Mapping[str, Tensor], wanted: Sequence[bool]) -> Tensor:
        """What the producers of every group are divided by, 1 in the levels that are not wanted: ``(S, count)``."""
        some = next(iter(weights.values()))
        found = some.new_ones(len(some), 0, dtype=torch.promote_types(some.dtype, torch.float32))
        key = (found.device, found.dtype)
        if key not in self._recipes:
            sizes = {name: weights[name][0].numel() for level in self.groups.levels for name in level.rows}
            with torch.inference_mode(False):  # they are kept for training
                self._recipes[key] = self._written(sizes, found)
        for recipe, chosen in zip(self._recipes[key], wanted, strict=True):
            own = recipe.factors(weights, found) if chosen else found.new_ones(len(found), recipe.count)
            found = torch.cat([found, own], dim=1)
        return found

    def _written(self, sizes: Mapping[str, int], like: Tensor) -> list[_Recipe]:
        """How every level is computed, on a device."""
        recipes, fixed = [], 0
        for level in self.groups.levels:
            count = len(level.groups)
            numbers, parts = like.new_zeros(count + 1), []
            for name, rows in level.rows.items():
                read = self.groups.consumers[name]
                flat = rows.to(like.device).reshape(-1)
                numbers.index_add_(0, flat, numbers.new_full(flat.shape, sizes[name] / rows.numel()))
                axes = [axis for axis in range(rows.ndim) if rows.shape[axis] == 1]
                alone = [axis + 1 for axis in axes if read.shape[axis] == 1]
                reads = read.clamp(max=fixed).to(like.device) if bool((read < self.groups.count).any()) else None
                parts.append(_Part(name, flat, [axis + 1 for axis in axes], alone, reads))
            own = self._own(level, {name: sizes[name] for name in level.rows})
            recipes.append(_Recipe(parts, numbers[:count] * own**2))
            fixed += count
        return recipes

    def _own(self, level: Level, sizes: Mapping[str, int]) -> float:
        """The root mean square that a level has in the target itself, its parameters being of these sizes; 1 where it is 0."""
        if self.scales is None:
            return 1.0
        numbers = {name: size * share for (name, size), share in zip(sizes.items(), level.shares, strict=True)}
        own = math.sqrt(sum(numbers[name] * self.scales[name] ** 2 for name in numbers) / sum(numbers.values()))
        return own if 0 < own < math.inf else 1.0


def own_scales(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """The root mean square of every parameter, which `ScaleGauge` fixes scales by; 0 for one without numbers."""
    if not parameters:
        return {}
    exact = [torch.promote_types(one.dtype, torch.float32) for one in parameters.values()]
    norms = [torch.linalg.vector_norm(one.detach(), dtype=dtype) for one, dtype in zip(parameters.values(), exact, strict=True)]
    return {
        name: norm / math.sqrt(max(one.numel(), 1))
        for (name, one), norm in zip(parameters.items(), torch.stack(norms).tolist(), strict=True)
    }


class LogitShiftGauge(Gauge):
    """Takes the mean off the output's bias, which a softmax does not see.

    Args:
        bias: Name of the parameter.
    """

    def __init__(self, bias: str) -> None:
        self.bias = bias

    def __call__(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map weights ``{name: (S, *shape)}`` to weights whose output bias sums to zero."""
        return self.select(weights, weights)

    def select(self, weights: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """Some of the gauge-fixed weights; each is fixed by itself."""
        chosen = {name: weights[name] for name in names}
        if self.bias in chosen:
            chosen[self.bias] = chosen[self.bias] - chosen[self.bias].mean(1, keepdim=True)
        return chosen

    def reads(self, weights: Collection[str], names: Collection[str]) -> Collection[str]:
        """The weights that are named."""
        return names


class PermutationGauge(Gauge):
    """Sorts the channels of every block by the sum of all numbers that write and read them.

    Args:
        blocks: The blocks of interchangeable channels of the target.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks

    def __call__(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Map weights ``{name: (S, *shape)}`` to weights of the same functions with sorted channels."""
        return self.select(weights, list(weights))

    def select(self, weights: Mapping[str, Tensor], names: Collection[str]) -> Mapping[str, Tensor]:
        """Some of the gauge-fixed weights; only blocks that touch them are sorted."""
        chosen: Mapping[str, Tensor] = {name: weights[name] for name in names}
        for block in self._touching(names):
            keys = torch.stack([axis.gather(weights).detach().sum(-1) for axis in block.axes]).sum(0)
            chosen = block.permute(chosen, keys.argsort(-1))
        return chosen

    def reads(self, weights: Collection[str], names: Collection[str]) -> Collection[str]:
        """The weights that are named, and those that their blocks are sorted by."""
        return {*names, *(axis.parameter for block in self._touching(names) for axis in block.axes)}

    def _touching(self, names: Collection[str]) -> list[Block]:
        return [block for block in self.blocks if any(axis.parameter in names for axis in block.axes)]


class Symmetric(Protocol):
    """What gauges are made from: the symmetries of a target, read when they are asked for."""

    @property
    def groups(self) -> ChannelGroups:
        """What may be scaled."""

    @property
    def blocks(self) -> Sequence[Block]:
        """What may be permuted."""

    @property
    def scales(self) -> Mapping[str, float] | None:
        """For every parameter the root mean square of the target's own values; None: scales are fixed to 1."""


def scale_gauge(symmetries: Symmetric) -> Gauge:
    """The scale of every channel group."""
    return ScaleGauge(symmetries.groups, symmetries.scales)


def permutation_gauge(symmetries: Symmetric) -> Gauge:
    """The scale of channels, and their order."""
    return ComposedGauge(ScaleGauge(symmetries.groups, symmetries.scales), PermutationGauge(symmetries.blocks))


def softmax_gauge(symmetries: Symmetric) -> Gauge:
    """The scale of channels, and the shift of the logits, which a softmax does not see; for outputs that feed one.

    Raises:
        SymmetryError: If the output is not a linear layer's with a generated bias.
    """
    output = symmetries.groups.output
    if output is None:
        raise SymmetryError("gauge='softmax' needs an output from a linear layer whose bias is generated; take 'scale'")
    return ComposedGauge(ScaleGauge(symmetries.groups, symmetries.scales), LogitShiftGauge(output))


def no_gauge(symmetries: Symmetric) -> Gauge:
    """Nothing is fixed."""
    return NoGauge()


@hookimpl
def hypernet_register_gauges(register: Callable[[str, Callable[..., Gauge]], None]) -> None:
    """Register the built-in gauges; ``"auto"`` is ``"scale"`` where it can be had."""
    register("auto", scale_gauge)
    register("scale", scale_gauge)
    register("softmax", softmax_gauge)
    register("permutation", permutation_gauge)
    register("none", no_gauge)
