"""WeightGenerator: code -> filter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hypernet.generator.config import GeneratorConfig
from lightning_hypernet.generator.layers import Hidden, linear, rows_of
from lightning_hypernet.target.filters import FilterBank

_CONSTANT_SCALE = 0.02


class WeightGenerator(nn.Module):
    r"""A network code -> filter, shared by all filters of a bank.

    .. math:: w = c + s \cdot \mathrm{raw}(\mathrm{code}) \quad\text{or}\quad w = m_k + g s \cdot \mathrm{raw}(\mathrm{code})

    c and s are the mean and the deviation of the target's own values, constants per number of a filter, so that a sampled
    network starts with the statistics of a fresh target. The trained mean weights m of component k exist for banks of one
    filter, and for all banks that start from mean or pretrained weights. They are in the target's own units: an optimizer moves
    and decays them as it does the plain target, and with g = 0 they are all there is.

    Args:
        bank: The bank.
        initial: The target's own values, ``(1, filters, filter_size)``.
        widths: Widths of the hidden layers.
        components: Number of components of the prior.
        config: Everything else.
    """

    center: Tensor
    scale: Tensor

    def __init__(
        self, bank: FilterBank, initial: Tensor, widths: Sequence[int], components: int, config: GeneratorConfig
    ) -> None:
        super().__init__()
        self.hidden = Hidden(config.code_size, widths, config)
        self.head = linear(self.hidden.outputs, bank.filter_size, config, activated=False)
        anchored = config.start in ("mean_weights", "pretrained") or (config.start == "mean_code" and bank.filters == 1)
        center, scale = _statistics(bank, initial, 0.0 if anchored else _CONSTANT_SCALE)
        if config.start == "paper":
            center, scale = torch.zeros_like(center), torch.ones_like(scale)
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)
        self.gain = config.gain if anchored else 1.0
        self.means: nn.Parameter | None = None
        if anchored:
            means = initial.repeat(components, 1, 1)
            if config.start != "pretrained":
                rest = math.sqrt(max(0.0, 1 - self.gain**2))  # what is generated brings the other part of the variance
                means += (rest - 1) * (means - center)
                if not bank.bare:
                    std = ((initial - center) / scale).std(correction=0)
                    means[1:] = center + rest * scale * std * torch.randn_like(means[1:])
            self.means = nn.Parameter(means)

    @torch.no_grad()
    def keep_mean(self, codes: Tensor, component: int, mean: Tensor) -> None:
        """Move the mean weights of a component so that the mean over codes is another.

        Args:
            codes: ``(S, filters, code_size)``.
            component: The component.
            mean: ``(filters, filter_size)``.
        """
        assert self.means is not None
        raw = F.linear(self.hidden(codes).mean(0), self.head.weight, self.head.bias)
        self.means[component] = mean - self.gain * self.scale * raw

    def forward(self, codes: Tensor, components: Tensor, own_gradient: float = 1.0) -> Tensor:
        """Generate filters.

        Args:
            codes: ``(S, filters, code_size)``.
            components: ``(S,)``, whose mean weights each sample takes.
            own_gradient: What the gradient of the mean weights is multiplied by.

        Returns:
            ``(S, filters, filter_size)``.
        """
        scale = self.scale * self.gain
        shift = None if self.head.bias is None else scale * self.head.bias
        if self.means is None:
            return F.linear(
                self.hidden(codes), self.head.weight * scale[:, None], self.center if shift is None else self.center + shift
            )
        filters = F.linear(self.hidden(codes), self.head.weight * scale[:, None], shift)
        return filters + rows_of(self.means, components, own_gradient)


def _statistics(bank: FilterBank, initial: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each slot; a slot that starts constant gets a small deviation, never zero.

    Weights that are trained in units of that deviation would hardly move from a constant like 1e-6 but for the `least` one.
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
