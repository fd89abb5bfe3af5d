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

    .. math:: w = c + s (o_k + g \cdot \mathrm{raw}(\mathrm{code}))

    c and s are constants per number of a filter, taken from the target's own initial values, so that a sampled network
    starts with the statistics of a fresh target and one optimizer step moves every layer by the same share of its size.
    The trained offset o of component k exists for banks of one filter, and for all banks that start from mean or
    pretrained weights; without it o = 0 and g = 1. Mean weights are kept as s o.

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
        center, scale = _statistics(bank, initial, 0.0 if config.start == "mean_weights" else _CONSTANT_SCALE)
        if config.start == "paper":
            center, scale = torch.zeros_like(center), torch.ones_like(scale)
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)
        anchored = config.start in ("mean_weights", "pretrained") or (config.start == "mean_code" and bank.filters == 1)
        self.gain = config.gain if anchored else 1.0
        self.relative = config.start != "mean_weights"
        self.offset: nn.Parameter | None = None
        if anchored:
            offset = ((initial - center) / scale).repeat(components, 1, 1)
            if config.start != "pretrained":
                if not bank.bare:
                    offset[1:] = torch.randn_like(offset[1:]) * offset[:1].std(correction=0)
                offset *= math.sqrt(max(0.0, 1 - self.gain**2))  # what is generated brings the rest of the variance
            self.offset = nn.Parameter(offset if self.relative else self.scale * offset)

    def forward(self, codes: Tensor, components: Tensor, own_gradient: float = 1.0) -> Tensor:
        """Generate filters.

        Args:
            codes: ``(S, filters, code_size)``.
            components: ``(S,)``, which offset each sample takes.
            own_gradient: What the gradient of the offsets is multiplied by.

        Returns:
            ``(S, filters, filter_size)``.
        """
        scale = self.scale * self.gain
        center = self.center if self.head.bias is None else self.center + scale * self.head.bias
        filters = F.linear(self.hidden(codes), self.head.weight * scale[:, None], center)
        if self.offset is None:
            return filters
        offset = rows_of(self.offset, components, own_gradient)
        return filters + (self.scale * offset if self.relative else offset)


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
