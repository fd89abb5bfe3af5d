"""Gauges: one representative out of every class of weights that compute the same function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from lightning_hypernet.graph import SymmetryError
from lightning_hypernet.symmetry import ChannelGroups, Level

GaugeName = Literal["auto", "scale", "softmax", "none"]


class Gauge(ABC):
    """A rule that picks one representative out of every class of weights that compute the same function."""

    @abstractmethod
    def __call__(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Map weights ``{name: (S, *shape)}`` to gauge-fixed weights of the same functions."""


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


class ScaleGauge(Gauge):
    r"""Fixes the scale of every channel group: the root mean square of what writes it first is 1.

    In topological order, for each group g with its first producers' numbers :math:`w_{g,k}`, the bias included,

    .. math:: s_g = \sqrt{\tfrac{1}{n_g} \sum_k w_{g,k}^2}

    divides all producers of the group and multiplies its consumers. On a plain network that is the paper's rule: the sum of
    squares of a filter equals its number of elements. A group whose first producers are all zero keeps its scale.

    References:
        | A Generative Model for Sampling High-Performance and Diverse Weights for Neural Networks (Deutsch et al., 2019)
        | https://arxiv.org/abs/1905.02898, section 3.2.2

    Args:
        groups: The channel groups of the target.
    """

    def __init__(self, groups: ChannelGroups) -> None:
        self.groups = groups

    def __call__(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map weights ``{name: (S, *shape)}`` to gauge-fixed weights of the same functions."""
        return self.groups.transform(weights, 1 / self.factors(weights))

    def factors(self, weights: Mapping[str, Tensor]) -> Tensor:
        """What the producers of every group are divided by: ``(S, count)``."""
        some = next(iter(weights.values()))
        found = some.new_ones(len(some), 0)
        for level in self.groups.levels:
            found = torch.cat([found, self._level(level, weights, found)], dim=1)
        return found

    def _level(self, level: Level, weights: Mapping[str, Tensor], found: Tensor) -> Tensor:
        """The root mean squares of one level, after the levels before it are fixed: ``(S, n)``."""
        count = len(level.groups)
        squares = found.new_zeros(len(found), count + 1)
        numbers = found.new_zeros(count + 1)
        for name, rows in level.rows.items():
            weight, read = weights[name], self.groups.consumers[name].to(found.device)
            numbers_each = weight[0].numel() / rows.numel()
            axes = [axis for axis in range(rows.ndim) if rows.shape[axis] == 1]
            alone = [axis + 1 for axis in axes if read.shape[axis] == 1]
            squared = torch.linalg.vector_norm(weight, dim=alone, keepdim=True).square() if alone else weight.square()
            if (read < self.groups.count).any():
                known = torch.cat([found, found.new_ones(len(found), 1)], dim=1)
                squared = squared * known[:, read.clamp(max=found.shape[1])].square()
            summed = squared.sum([axis + 1 for axis in axes]) if axes else squared
            flat = rows.to(found.device).reshape(-1)
            squares = squares.index_add(1, flat, summed.reshape(len(weight), -1))
            numbers = numbers.index_add(0, flat, numbers.new_full(flat.shape, numbers_each))
        mean = squares[:, :count] / numbers[:count]
        return torch.where(mean > 0, mean, 1.0).sqrt()


class LogitShiftGauge(Gauge):
    """Takes the mean off the output's bias, which a softmax does not see.

    Args:
        bias: Name of the parameter.
    """

    def __init__(self, bias: str) -> None:
        self.bias = bias

    def __call__(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map weights ``{name: (S, *shape)}`` to weights whose output bias sums to zero."""
        bias = weights[self.bias]
        return {**weights, self.bias: bias - bias.mean(1, keepdim=True)}


def build_gauge(name: GaugeName, groups: ChannelGroups) -> Gauge:
    """The gauge of a name.

    Args:
        name: ``"auto"`` and ``"scale"``: the scale of every channel group. ``"softmax"``: also the shift of the logits, which
            a softmax does not see; only where the outputs feed one.
        groups: The channel groups of the target.

    Returns:
        The gauge.

    Raises:
        SymmetryError: If the shift of the logits shall be fixed and the output is not a linear layer's with a generated bias.
    """
    if name != "softmax":
        return ScaleGauge(groups)
    if groups.output is None:
        raise SymmetryError("gauge='softmax' needs an output from a linear layer whose bias is generated; take 'scale'")
    return ComposedGauge(ScaleGauge(groups), LogitShiftGauge(groups.output))
