"""Gauges: one representative out of every class of weights that compute the same function."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_hypernet.markers import hookimpl
from lightning_hypernet.symmetry.graph import SymmetryError
from lightning_hypernet.symmetry.order import Block
from lightning_hypernet.symmetry.scale import ChannelGroups, Level


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

    def __call__(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Map weights ``{name: (S, *shape)}`` to gauge-fixed weights of the same functions."""
        return self.select(weights, list(weights))

    def select(self, weights: Mapping[str, Tensor], names: Collection[str]) -> Mapping[str, Tensor]:
        """Some of the gauge-fixed weights; the scale of groups that don't touch them is left alone."""
        factors = self.factors(weights, self._levels_of(names))
        return self.groups.transform({name: weights[name] for name in names}, 1 / factors)

    def _levels_of(self, names: Collection[str]) -> list[bool]:
        """Which levels fix the scales that some parameters are written and read with, and those that these need in turn."""
        groups = self.groups
        needed = torch.zeros(groups.count + 1, dtype=torch.bool)
        for name in names:
            if name in groups.producers:
                needed[groups.producers[name].reshape(-1)] = True
                needed[groups.consumers[name].reshape(-1)] = True
        wanted = []
        for level in reversed(groups.levels):
            wanted.append(bool(needed[level.groups].any()))
            if wanted[-1]:
                for name in level.rows:
                    needed[groups.consumers[name].reshape(-1)] = True
        return wanted[::-1]

    def factors(self, weights: Mapping[str, Tensor], wanted: Sequence[bool]) -> Tensor:
        """What the producers of every group are divided by, 1 in the levels that are not wanted: ``(S, count)``."""
        some = next(iter(weights.values()))
        found = some.new_ones(len(some), 0, dtype=torch.promote_types(some.dtype, torch.float32))
        for level, chosen in zip(self.groups.levels, wanted, strict=True):
            found = torch.cat(
                [found, self._level(level, weights, found) if chosen else found.new_ones(len(found), len(level.groups))], dim=1
            )
        return found

    def _level(self, level: Level, weights: Mapping[str, Tensor], found: Tensor) -> Tensor:
        """What the producers of one level are divided by, after the levels before it are fixed: ``(S, n)``."""
        count = len(level.groups)
        squares = found.new_zeros(len(found), count + 1)
        numbers = found.new_zeros(count + 1)
        for name, rows in level.rows.items():
            weight, read = weights[name], self.groups.consumers[name].to(found.device)
            numbers_each = weight[0].numel() / rows.numel()
            axes = [axis for axis in range(rows.ndim) if rows.shape[axis] == 1]
            alone = [axis + 1 for axis in axes if read.shape[axis] == 1]
            squared = _Squares.apply(weight, alone) if alone else weight.to(found.dtype).square()
            if (read < self.groups.count).any():
                known = torch.cat([found, found.new_ones(len(found), 1)], dim=1)
                squared = squared * known[:, read.clamp(max=found.shape[1])].square()
            summed = squared.sum([axis + 1 for axis in axes]) if axes else squared
            flat = rows.to(found.device).reshape(-1)
            squares = squares.index_add(1, flat, summed.reshape(len(weight), -1))
            numbers = numbers.index_add(0, flat, numbers.new_full(flat.shape, numbers_each))
        own = self._own(level, {name: weights[name][0].numel() for name in level.rows})
        ratio = squares[:, :count] / (numbers[:count] * own**2)
        return torch.where(ratio > 0, ratio, 1.0).sqrt()

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
