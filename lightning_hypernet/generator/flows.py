"""Weight distributions with normalizing flows, which are zuko's."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from lightning_hypernet.generator.distribution import Setting
from lightning_hypernet.generator.explicit import ExplicitDistribution, log_normal, refuse_half
from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.target.filters import FilterBank, FilterBanks, Slot
from lightning_hypernet.values import choice, real, whole, wholes

_FLOWS = ("NICE", "RealNVP", "MAF", "NSF")
"""The flows of zuko from a standard normal base, whose inverse has a closed form."""


class Flow(nn.Module):
    r"""An invertible map u of vectors, and the density of its images.

    .. math:: u = f^{-1}(z), \qquad \log q(u) = \log N(f(u); 0, I) + \log |\det \partial f / \partial u|

    Args:
        size: Numbers in a vector. A single number is left as it is.
        flow: Class of `zuko.flows`: ``"NICE"`` and ``"RealNVP"`` are fast both ways; ``"MAF"`` and ``"NSF"`` draw one number
            after the other.
        transforms: Maps that follow each other.
        hidden: Widths of the networks in them.

    Raises:
        ValueError: If zuko is not installed, or has no such flow.
    """

    def __init__(self, size: int, flow: str = "RealNVP", transforms: int = 3, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        make = getattr(_flows(), choice("flow", flow, _FLOWS))
        widths = wholes("the flow's hidden", hidden)
        count = whole("the flow's transforms", transforms)
        self.inner: Any = make(size, transforms=count, hidden_features=widths) if size > 1 else None

    def draw(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The images u ``(S, size)`` of z, and the log density of each, ``(S,)``, in nats."""
        base = log_normal(z, z.new_zeros(()), z.new_zeros(()))
        if self.inner is None:
            return z, base
        u, ladj = self.inner().transform.inv.call_and_ladj(z)
        return u, base - ladj

    def log_prob(self, u: Tensor) -> Tensor:
        """The log density of vectors ``(S, size)``, ``(S,)``, in nats."""
        if self.inner is None:
            return log_normal(u, u.new_zeros(()), u.new_zeros(()))
        density: Tensor = self.inner().log_prob(u)
        return density


class FlowDistribution(ExplicitDistribution):
    r"""A normalizing flow over all weights.

    .. math:: \theta = m + s \odot f^{-1}(z), \qquad
        \log q(\theta) = \log N(f(u); 0, I) + \log |\det \partial f / \partial u| - \sum_i \log s_i, \quad u = (\theta - m) / s

    References:
        | Variational Inference with Normalizing Flows (Rezende and Mohamed, 2015)
        | https://arxiv.org/abs/1505.05770

    Args:
        setting: What the distribution is made for.
        sigma: As of `ExplicitDistribution`.
        flow: As of `Flow`.
        transforms: As of `Flow`.
        hidden: As of `Flow`.
    """

    def __init__(
        self, setting: Setting, sigma: float = 0.1, flow: str = "RealNVP", transforms: int = 3, hidden: Sequence[int] = (64,)
    ) -> None:
        super().__init__(setting, sigma)
        self.flow = Flow(len(self.mean), flow, transforms, hidden).to(self.mean)

    @classmethod
    def noise(cls, banks: FilterBanks, options: Mapping[str, Any]) -> int:
        """One number for every weight."""
        return banks.weights

    def standardised(self, z: Tensor) -> Tensor:
        """The image of z under the flow."""
        return self.flow.draw(z)[0]

    def log_density(self, latents: Latents, weights: Mapping[str, Tensor]) -> Tensor:
        """Log density of weights ``{name: (S, *shape)}``, whatever their latents, ``(S,)``, in nats."""
        vector = self.vector(weights)
        return self.flow.log_prob((vector - self.mean) / self.log_std.exp()) - self.log_std.sum()


class FilterNorms(FlowDistribution):
    r"""Filters with trained directions, whose norms are random and come from a flow.

    .. math:: \theta_f = g_f \, v_f / |v_f|, \qquad g = m + s \odot f^{-1}(z)

    for every filter f of a linear or convolution layer, its weight without bias; all else is trained as it is. The density is
    that of the norms g, which stand for the weights in a prior, too.

    References:
        | Bayesian Hypernetworks (Krueger et al., 2017)
        | https://arxiv.org/abs/1710.04759

    Args:
        setting: What the distribution is made for.
        sigma: Standard deviation of a norm at the start, relative to the norm of the target's own filter.
        flow: As of `Flow`.
        transforms: As of `Flow`.
        hidden: As of `Flow`.

    Raises:
        ValueError: If the target has no linear or convolution layer.
    """

    def __init__(
        self, setting: Setting, sigma: float = 0.1, flow: str = "RealNVP", transforms: int = 3, hidden: Sequence[int] = (64,)
    ) -> None:
        super(FlowDistribution, self).__init__(setting, sigma)
        self.layers = [bank for bank in setting.banks if _has_norms(bank)]
        norms = torch.cat([self._rows(bank, setting.initial).norm(dim=1) for bank in self.layers]).detach()
        if not bool((norms > 0).all()):
            zero = [bank.slots[0].parameter for bank in self.layers if not bool(self._rows(bank, setting.initial).any(1).all())]
            raise ValueError(f"{zero[0]} has filters of zeros, which have no direction: initialise or exclude it")
        self.direction, self.mean = self.mean, nn.Parameter(norms)
        self.log_std = nn.Parameter((real("FilterNorms' sigma", sigma, 0, above=True) * norms).log())
        self.flow = Flow(len(norms), flow, transforms, hidden).to(norms)

    @classmethod
    def noise(cls, banks: FilterBanks, options: Mapping[str, Any]) -> int:
        """One number for every filter."""
        filters = sum(_slot(bank).filters for bank in banks if _has_norms(bank))
        if not filters:
            raise ValueError("the target has no linear or convolution layer, whose filters have norms: take 'mean_field'")
        return filters

    @staticmethod
    def _rows(bank: FilterBank, weights: Mapping[str, Tensor]) -> Tensor:
        """The filters of one network, ``(filters, numbers)``."""
        slot = _slot(bank)
        return slot.gather(weights[slot.parameter][None])[0]

    def _directions(self) -> list[Tensor]:
        """Of every layer the unit vectors of its filters, ``(filters, numbers)``."""
        own = self.of_vector(self.direction[None])
        rows = [self._rows(bank, {name: value[0] for name, value in own.items()}) for bank in self.layers]
        return [row / row.norm(dim=1, keepdim=True).clamp(min=torch.finfo(row.dtype).tiny) for row in rows]

    def drawn(self, latents: Latents) -> dict[str, Tensor]:
        """Weights of S latents, ``{name: (S, *shape)}``."""
        norms = torch.addcmul(self.mean, self.log_std.exp(), self.standardised(latents.z))
        weights = self.of_vector(self.direction.expand(len(latents), -1))
        slots = [_slot(bank) for bank in self.layers]
        parts = norms.split([slot.filters for slot in slots], dim=1)
        for slot, norm, direction in zip(slots, parts, self._directions(), strict=True):
            weights[slot.parameter] = slot.scatter(norm[..., None] * direction).contiguous()
        return weights

    def coordinates(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The norms of all filters, ``(S, filters)``, negative where a filter is turned round."""
        refuse_half(self.mean)
        slots = [_slot(bank) for bank in self.layers]
        rows = [slot.gather(weights[slot.parameter]) for slot in slots]
        pairs = zip(rows, self._directions(), strict=True)
        return torch.cat([(row * direction).sum(-1) for row, direction in pairs], dim=1)

    def log_density(self, latents: Latents, weights: Mapping[str, Tensor]) -> Tensor:
        """Log density of the norms of filters, ``(S,)``, in nats."""
        u = (self.coordinates(weights) - self.mean) / self.log_std.exp()
        return self.flow.log_prob(u) - self.log_std.sum()


class MultiplicativeFlows(ExplicitDistribution):
    r"""Gaussians whose means are multiplied by vectors that come from flows, one vector c for each layer.

    .. math:: \theta = m \odot c + s \odot \epsilon, \qquad c = 1 + a \odot f^{-1}(\zeta), \qquad z = (\epsilon, \zeta)

    c has a number for every filter of a convolution, and one for every input of a linear layer. The density of weights has no
    closed form; an auxiliary distribution r of c given weights bounds it:

    .. math:: \mathbb{E} \log q(\theta) \leq \mathbb{E} [\log q(\theta | c) + \log q(c) - \log r(c | \theta)]

    References:
        | Multiplicative Normalizing Flows for Variational Bayesian Neural Networks (Louizos and Welling, 2017)
        | https://arxiv.org/abs/1703.01961

    Args:
        setting: What the distribution is made for.
        sigma: As of `ExplicitDistribution`.
        spread: Standard deviation of the multipliers at the start.
        transforms: Maps of every flow that follow each other.
        hidden: Widths of the networks in them.

    Raises:
        ValueError: If no parameter of the target has two axes.
    """

    density = "bound"

    def __init__(
        self,
        setting: Setting,
        sigma: float = 0.1,
        spread: float = 0.1,
        transforms: int = 2,
        hidden: Sequence[int] = (50,),
    ) -> None:
        super().__init__(setting, sigma)
        self.axes = _axes(self.shapes)
        self.lengths = [self.shapes[name][axis] for name, axis in self.axes.items()]
        start = math.log(real("MultiplicativeFlows' spread", spread, 0, above=True))
        sizes = ("RealNVP", transforms, hidden)
        self.log_spread = nn.ParameterList([torch.full((n,), start) for n in self.lengths])
        self.flows = nn.ModuleList(Flow(n, *sizes) for n in self.lengths)
        self.backward_flows = nn.ModuleList(Flow(n, *sizes) for n in self.lengths)
        self.mixes = nn.ParameterList([torch.randn(n) / math.sqrt(n) for n in self.lengths])
        self.centers = nn.ParameterList([torch.zeros(2, n) for n in self.lengths])
        self.log_widths = nn.ParameterList([torch.stack([torch.full((n,), start), torch.zeros(n)]) for n in self.lengths])
        self.to(self.mean)

    @classmethod
    def noise(cls, banks: FilterBanks, options: Mapping[str, Any]) -> int:
        """One number for every weight, and one for every multiplier."""
        multipliers = sum(banks.shapes[name][axis] for name, axis in _axes(banks.shapes).items())
        if not multipliers:
            raise ValueError("no parameter of the target has two axes, which multipliers need: take 'mean_field'")
        return banks.weights + multipliers

    def _multipliers(self, z: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of every layer the multipliers, ``(S, length)``, and their log density, ``(S,)``."""
        drawn = []
        for part, flow, log_spread in zip(z.split(self.lengths, dim=1), self.flows, self.log_spread, strict=True):
            assert isinstance(flow, Flow)
            u, density = flow.draw(part)
            drawn.append((torch.addcmul(torch.ones_like(u), log_spread.exp(), u), density - log_spread.sum()))
        return drawn

    def _means(self, multipliers: Sequence[Tensor]) -> Tensor:
        """The means of the weights, ``(S, weights)``."""
        means = self.of_vector(self.mean.expand(len(multipliers[0]), -1))
        for (name, axis), one in zip(self.axes.items(), multipliers, strict=True):
            shape = [len(one)] + [1] * len(self.shapes[name])
            shape[axis + 1] = -1
            means[name] = means[name] * one.view(shape)
        return torch.cat([value.reshape(len(value), -1) for value in means.values()], dim=1)

    def _split(self, latents: Latents) -> tuple[Tensor, Tensor]:
        own, rest = latents.z.split([len(self.mean), sum(self.lengths)], dim=1)
        return own, rest

    def standardised(self, z: Tensor) -> Tensor:
        """The share of z that is the noise of the weights themselves."""
        return z[:, : len(self.mean)]

    def drawn(self, latents: Latents) -> dict[str, Tensor]:
        """Weights of S latents, ``{name: (S, *shape)}``."""
        own, rest = self._split(latents)
        means = self._means([one for one, _ in self._multipliers(rest)])
        return self.of_vector(torch.addcmul(means, self.log_std.exp(), own))

    def log_density(self, latents: Latents, weights: Mapping[str, Tensor]) -> Tensor:
        """The bound at weights ``{name: (S, *shape)}`` and the multipliers of their latents, ``(S,)``, in nats."""
        drawn = self._multipliers(self._split(latents)[1])
        multipliers = [one for one, _ in drawn]
        density = log_normal(self.vector(weights), self._means(multipliers), self.log_std)
        return density + sum(one for _, one in drawn) - self._auxiliary(multipliers, weights)

    def _auxiliary(self, multipliers: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """The log density r of the multipliers given weights, ``(S,)``."""
        total = multipliers[0].new_zeros(())
        parts = (self.axes.items(), multipliers, self.backward_flows, self.mixes, self.centers, self.log_widths)
        for (name, axis), one, flow, mix, center, log_width in zip(*parts, strict=True):
            rows = weights[name].movedim(axis + 1, 1).flatten(2)
            summary = torch.tanh(torch.einsum("n,snr->sr", mix, rows)).mean(1, keepdim=True)
            where, log_scale = center[0] + summary * center[1], log_width[0] + summary * log_width[1]
            standard = (one - 1 - where) / log_scale.exp()
            total = total + flow.log_prob(standard) - log_scale.sum(1)
        return total


def _flows() -> Any:
    """The flows of zuko, whose import leaves distributions of torch as they were: it stops them from checking arguments."""
    if importlib.util.find_spec("zuko") is None:
        raise ValueError("flows are zuko's: pip install 'lightning_hypernet[flows]'")
    checks = __debug__ and Normal(0.0, 1.0)._validate_args
    from zuko import flows

    Distribution.set_default_validate_args(checks)
    return flows


def _has_norms(bank: FilterBank) -> bool:
    return bank.layer and not bank.slots[0].start and len(bank.slots[0].shape) > 1


def _slot(bank: FilterBank) -> Slot:
    """The filters of a layer without their bias, also where the whole layer is one filter to the generator."""
    slot = bank.slots[0]
    size = math.prod(slot.shape[1:])
    return slot if slot.axes else replace(slot, view=(slot.shape[0], size), axes=(0,))


def _axes(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Which axis of a weight its multipliers belong to: filters of a convolution, inputs of a linear layer."""
    return {name: 1 if len(shape) == 2 else 0 for name, shape in shapes.items() if len(shape) > 1}
