"""WeightGenerator: code -> filter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hypernet.generator.config import GeneratorConfig
from lightning_hypernet.generator.layers import Hidden, added, linear, rows_of
from lightning_hypernet.target.filters import FilterBank, FilterBanks

_CONSTANT_SCALE = 0.02
_SMALL = 1 << 16
"""Numbers that are generated at once; of more, every slot by itself, where it lies."""


class WeightGenerator(nn.Module):
    r"""A network code -> filter, shared by all filters of a bank.

    .. math:: w = c + s \cdot \mathrm{raw}(\mathrm{code}) \quad\text{or}\quad w = m_k + g s \cdot \mathrm{raw}(\mathrm{code})

    c and s are the mean and the deviation of the target's own values, constants per number of a filter, so that a sampled
    network starts with the statistics of a fresh target. The trained mean weights m of component k exist for banks of one
    filter, and for all banks that start from mean or pretrained weights, where raw is what the code makes less what that of
    z = 0 makes. They are in the target's own units: an optimizer moves and decays them as it does the plain target, and with
    g = 0 they are all there is. Of an adapter they are the target's own, a buffer, and g = 1.

    Args:
        bank: The bank.
        initial: The target's own values, ``(1, filters, filter_size)``.
        inputs: Numbers that it is given of a filter: its code, or what the shared hidden layers made of it.
        widths: Widths of its own hidden layers.
        components: Number of components of the prior.
        config: Everything else.
    """

    center: Tensor
    scale: Tensor
    gain: Tensor

    def __init__(
        self, bank: FilterBank, initial: Tensor, inputs: int, widths: Sequence[int], components: int, config: GeneratorConfig
    ) -> None:
        super().__init__()
        self.hidden = Hidden(inputs, widths, config)
        anchored = config.anchors(bank.filters)
        bare = replace(config, bias=False) if anchored else config  # weights beneath have a bias in them
        self.head = linear(self.hidden.outputs, bank.filter_size, bare, activated=False)
        center, scale = initial_statistics(bank, initial, 0.0 if anchored else _CONSTANT_SCALE)
        if config.start == "paper":
            center, scale = torch.zeros_like(center), torch.ones_like(scale)
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)
        gain = config.gain if anchored else 1.0
        self.filters, self.sizes = bank.filters, [slot.size for slot in bank.slots]
        self.means: Tensor | None
        if config.start == "adapter":
            gain = 1.0  # what is trained acts at full size, and starts small
            with torch.no_grad():
                self.head.weight *= config.gain
            self.register_buffer("means", initial.clone())
        elif anchored:
            pace = 1.0 if config.pace is None else config.pace
            with torch.no_grad():
                self.head.weight /= pace
            gain *= pace
            means = initial.repeat(components, 1, 1)
            if config.start != "pretrained":
                rest = math.sqrt(max(0.0, 1 - config.gain**2))  # what is generated brings the other part of the variance
                means += (rest - 1) * (means - center)
                if not bank.bare:
                    std = ((initial - center) / scale).std(correction=0)
                    means[1:] = center + rest * scale * std * torch.randn_like(means[1:])
            self.means = nn.Parameter(means)
        else:
            self.means = None
        self.register_buffer("gain", initial.new_tensor(gain))  # a file's own, however it came about

    @torch.no_grad()
    def keep_mean(self, features: Tensor, component: int, mean: Tensor) -> None:
        """Move the mean weights of a component so that the mean over features is another.

        Args:
            features: ``(S, filters, width)``.
            component: The component.
            mean: ``(filters, filter_size)``.
        """
        assert self.means is not None
        raw = F.linear(features.mean(0), self.head.weight)
        self.means[component] = mean - self.gain * self.scale * raw

    def mean(self, count: int) -> list[Tensor]:
        """The mean weights of the first component as they are, for every slot ``(count, filters, size)``."""
        assert self.means is not None
        return list(self.means[:1].expand(count, -1, -1).split(self.sizes, dim=-1))

    def features(self, codes: Tensor) -> Tensor:
        """What the last layer is given of codes ``(S, filters, inputs)``: ``(S, filters, width)``."""
        features: Tensor = self.hidden(codes.flatten(0, 1))
        return features.view(*codes.shape[:2], -1)

    def forward(self, features: Tensor, components: Tensor, own_gradient: float = 1.0) -> list[Tensor]:
        """Generate filters by the last layer, every slot of the bank by itself, as parameters lie in memory.

        Args:
            features: ``(S, filters, width)``, what `features` makes of codes.
            components: ``(S,)``, whose mean weights each sample takes.
            own_gradient: What the gradient of the mean weights is multiplied by.

        Returns:
            For every slot ``(S, filters, size)``.
        """
        scale = self.scale * self.gain
        whole = self.head.weight * scale[:, None]
        if self.means is not None and len(features) * self.filters * len(scale) <= _SMALL:
            filters = added(F.linear(features, whole), rows_of(self.means, components, own_gradient))
            return list(filters.split(self.sizes, dim=-1))
        weights = whole.split(self.sizes)
        if self.means is None:
            shift = self.center if self.head.bias is None else self.center + scale * self.head.bias
            pairs = zip(weights, shift.split(self.sizes), strict=True)
            return [F.linear(features, weight, bias) for weight, bias in pairs]
        beneath = rows_of(self.means, components, own_gradient).split(self.sizes, dim=-1)
        pairs = zip(weights, beneath, strict=True)
        return [added(F.linear(features, weight), own) for weight, own in pairs]


def slot_units(banks: FilterBanks, initial: Mapping[str, Tensor]) -> Tensor:
    """The size of the weights of every slot at the start, ``(slots,)``, in float64.

    Args:
        banks: The filter banks.
        initial: The target's own value of every generated parameter.

    Returns:
        The standard deviation of a slot's initial values; a tenth of the absolute value of a constant one, and 0.02 for 0.
    """
    exact = {name: value.detach()[None].double() for name, value in initial.items()}
    units: list[Tensor] = []
    for bank, values in zip(banks, banks.flatten(exact), strict=True):
        _, scale = initial_statistics(bank, values, least=0.0)
        units += [part[0] for part in scale.split([slot.size for slot in bank.slots])]
    return torch.stack(units)


def initial_statistics(bank: FilterBank, initial: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each slot; a slot that starts constant gets a small deviation, never zero.

    Weights that are trained in units of that deviation would hardly move from a constant like 1e-6 but for the `least` one.

    Args:
        bank: The bank.
        initial: ``(1, filters, filter_size)``.
        least: The least deviation of a slot that starts constant and is not zero.

    Returns:
        Both for every number of a filter, ``(filter_size,)``.
    """
    centers, scales = [], []
    for values in initial.split([slot.size for slot in bank.slots], dim=-1):
        mean = values.double().mean()
        std = values.double().std(correction=0)
        if std <= 1e-3 * mean.abs():
            std = (0.1 * mean.abs()).clamp(min=least if mean else _CONSTANT_SCALE)
        centers.append(mean.expand(values.shape[-1]))
        scales.append(std.expand(values.shape[-1]))
    return torch.cat(centers).to(initial.dtype), torch.cat(scales).to(initial.dtype)
