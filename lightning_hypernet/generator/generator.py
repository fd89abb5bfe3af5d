"""The generator: latent z -> one code per filter -> filters -> all the weights of a target."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hypernet.target.filters import FilterBank, FilterBanks

_ACTIVATIONS = {"leaky_relu": nn.LeakyReLU, "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}
_CONSTANT_SCALE = 0.02


@dataclass(frozen=True)
class GeneratorConfig:
    """What a generator is made of. Every field is plain, so that YAML and the command line reach it.

    Args:
        code_size: Numbers in the code of a filter.
        hidden: Widths of the hidden layers of the weight generators: one list for all banks, or one for each bank.
        extractor: ``"mlp"``, whose last layer holds filters x code size x width numbers, or ``"matrix"``, which writes the
            codes of a bank as a product of thin matrices and lets a generator be smaller than its target.
        extractor_hidden: Widths of the hidden layers of the extractor.
        rank: Inner size of the matrix extractor.
        start: ``"mean_weights"``: a code is the trained mean of its filter plus `spread` times what the extractor makes of z,
            and what is generated from it deviates from trained mean weights, which every component has of its own; these
            are in the target's units, so that the learning rate of the plain target fits them. The first component's start
            from the target's values, the others' from random numbers of the same mean and deviation, but for parameters that
            no rule reads, which may hold a table. ``"mean_code"``: the same
            without mean weights, but for banks of a single filter; a generator that all components share.
            ``"pretrained"``: mean weights that are the target's own, in units of their deviation. ``"paper"``: codes and
            weights come from z alone, and every matrix starts at a tenth of the usual size.
        spread: Share of z in a code at the start.
        gain: Standard deviation of what is generated beside mean weights at the start, relative to a fresh target's weights;
            mean weights that are fresh themselves hold the rest of the variance.
        activation: ``"leaky_relu"``, ``"relu"``, ``"tanh"``, ``"gelu"`` or ``"silu"``.
        slope: Negative slope of the leaky ReLU.
        norm: ``"batch"`` over all codes of a bank, ``"layer"`` or ``"none"``; it follows the activation.
        norm_eps: Added to the variance.
        norm_momentum: Share of the newest batch in the running statistics of the batch norm.
        bias: Whether linear layers have a bias.
        residual: Whether a hidden layer as wide as its input adds its input to its output.
        merge: Which linear and convolution layers of the target, by position, are one filter.
        merge_limit: Layers with more weights than this are never merged.
    """

    code_size: int = 16
    hidden: Sequence[int] | Sequence[Sequence[int]] = (64, 64)
    extractor: Literal["mlp", "matrix"] = "mlp"
    extractor_hidden: Sequence[int] = (128, 128)
    rank: int = 8
    start: Literal["mean_weights", "mean_code", "pretrained", "paper"] = "mean_weights"
    spread: float = 0.3
    gain: float = 0.3
    activation: str = "leaky_relu"
    slope: float = 0.05
    norm: Literal["batch", "layer", "none"] = "batch"
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    bias: bool = True
    residual: bool = False
    merge: Sequence[int] = (-1,)
    merge_limit: int = 8192

    def __post_init__(self) -> None:
        widths = [width for entry in self.hidden for width in ([entry] if isinstance(entry, int) else entry)]
        sizes = {"code_size": [self.code_size], "rank": [self.rank], "hidden": widths}
        problems = [f"{name} must be positive, not {values}" for name, values in sizes.items() if min(values, default=1) < 1]
        choices = {
            "extractor": _EXTRACTORS,
            "start": ("mean_code", "mean_weights", "pretrained", "paper"),
            "norm": ("batch", "layer", "none"),
        }
        choices["activation"] = _ACTIVATIONS
        problems += [
            f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
            for name, allowed in choices.items()
            if getattr(self, name) not in allowed
        ]
        if problems:
            raise ValueError("; ".join(problems))

    @classmethod
    def paper(cls, target: Literal["mnist", "cifar_lenet", "cifar_resnet32"] = "mnist") -> GeneratorConfig:
        """The hypernetworks of Deutsch, Nijkamp and Yang (2019), to the parameter count where it can be known.

        MNIST takes 300 latent numbers, uniform on [-1, 1]: 631,240 weights, 633,640 with those of its norm layers. The
        CIFAR ones take 100, standard normal; their extractor gives every filter a code of 8, which the paper's table
        counts as one number.

        Args:
            target: The paper's target network.

        Returns:
            The configuration, with one list of widths for each bank of the MNIST target.
        """
        common = cls(start="paper", bias=False, norm_eps=1e-7, norm_momentum=0.02, merge_limit=1 << 20)
        if target == "mnist":
            hidden = ((40, 40), (100, 100), (100, 100), (60, 60))
            return replace(common, code_size=15, hidden=hidden, extractor_hidden=(300, 300))
        if target == "cifar_lenet":
            return replace(common, code_size=8, hidden=(400, 400), extractor_hidden=(200, 200), merge=(-2, -1))
        if target == "cifar_resnet32":
            return replace(common, code_size=8, hidden=(800, 800), extractor_hidden=(1200, 1200), residual=True)
        raise ValueError(f"target must be mnist, cifar_lenet or cifar_resnet32, not {target!r}")

    @classmethod
    def pretrained(cls, gain: float = 0.05) -> GeneratorConfig:
        """Start around the target's own weights; `gain` is the relative size of the first deviations from them."""
        return cls(start="pretrained", gain=gain)

    @classmethod
    def compact(cls) -> GeneratorConfig:
        """A generator that is smaller than most targets: matrix extractor, narrow weight generators."""
        return cls(start="mean_code", code_size=8, hidden=(32,), extractor="matrix", extractor_hidden=(64, 64))

    def widths(self, bank: int, banks: int) -> tuple[int, ...]:
        """Hidden widths of the weight generator of one bank, checked against the number of banks."""
        nested = [tuple(entry) for entry in self.hidden if not isinstance(entry, int)]
        if not nested:
            return tuple(width for width in self.hidden if isinstance(width, int))
        if len(nested) != banks:
            raise ValueError(f"`hidden` lists widths for {len(nested)} banks, the target has {banks}; give one list a bank")
        return nested[bank]


def _linear(inputs: int, outputs: int, config: GeneratorConfig, activated: bool) -> nn.Linear:
    """A linear layer that keeps the second moment, through a (leaky) ReLU if one follows."""
    layer = nn.Linear(inputs, outputs, bias=config.bias)
    with torch.no_grad():
        if config.start == "paper":
            std = 0.1 / math.sqrt(inputs)
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        else:
            gain = math.sqrt(2 / (1 + config.slope**2)) if activated else 1.0
            nn.init.normal_(layer.weight, std=gain / math.sqrt(inputs))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layer


class _Norm(nn.Module):
    """Batch norm over all axes but the last; with a single vector to normalise it uses its running statistics."""

    def __init__(self, width: int, config: GeneratorConfig) -> None:
        super().__init__()
        self.inner = nn.BatchNorm1d(width, eps=config.norm_eps, momentum=config.norm_momentum)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if self.training and len(flat) > 1:
            normal: Tensor = self.inner(flat)
            return normal.reshape(x.shape)
        norm = self.inner
        return F.batch_norm(flat, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps).reshape(
            x.shape
        )


class _Hidden(nn.Module):
    """Hidden layers: linear, activation, norm, and the input again where widths agree and the configuration says so."""

    def __init__(self, inputs: int, widths: Sequence[int], config: GeneratorConfig) -> None:
        super().__init__()
        self.residual = config.residual
        self.linears = nn.ModuleList()
        self.norms = nn.ModuleList()
        for width in widths:
            self.linears.append(_linear(inputs, width, config, activated=True))
            norms: dict[str, nn.Module] = {"layer": nn.LayerNorm(width, eps=config.norm_eps), "none": nn.Identity()}
            self.norms.append(_Norm(width, config) if config.norm == "batch" else norms[config.norm])
            inputs = width
        self.outputs = inputs
        activation = _ACTIVATIONS[config.activation]
        self.activation = activation(config.slope) if activation is nn.LeakyReLU else activation()

    def forward(self, x: Tensor) -> Tensor:
        for linear, norm in zip(self.linears, self.norms, strict=True):
            y = norm(self.activation(linear(x)))
            x = x + y if self.residual and x.shape == y.shape else y
        return x


class Extractor(nn.Module, ABC):
    """A network z -> one code per filter.

    Args:
        latent_dim: Numbers in z.
        filters: Number of filters of every bank.
        config: Widths and code size.
    """

    def __init__(self, latent_dim: int, filters: Sequence[int], config: GeneratorConfig) -> None:
        super().__init__()
        self.filters = list(filters)
        self.code_size = config.code_size
        self.hidden = _Hidden(latent_dim, config.extractor_hidden, config)

    @abstractmethod
    def forward(self, latents: Tensor) -> list[Tensor]:
        """Map latents ``(S, latent_dim)`` to codes, one ``(S, filters, code_size)`` for every bank."""


class MLPExtractor(Extractor):
    """The paper's extractor: a multilayer perceptron that emits all codes side by side."""

    def __init__(self, latent_dim: int, filters: Sequence[int], config: GeneratorConfig) -> None:
        super().__init__(latent_dim, filters, config)
        self.head = _linear(self.hidden.outputs, sum(filters) * config.code_size, config, activated=False)

    def forward(self, latents: Tensor) -> list[Tensor]:
        """Map latents ``(S, latent_dim)`` to codes, one ``(S, filters, code_size)`` for every bank."""
        codes = self.head(self.hidden(latents)).reshape(len(latents), -1, self.code_size)
        return list(codes.split(self.filters, dim=1))


class MatrixExtractor(Extractor):
    r"""Codes of low rank: :math:`C = U H(z) V` for every bank.

    U is ``(filters, rank)``, H(z) is ``(rank, rank)`` and comes from z, V is ``(rank, code_size)``. The mean codes of the
    generator take the place of an additive B.

    References:
        | Variational Hyper-Encoding Networks (Nguyen et al., 2021)
        | https://arxiv.org/abs/2005.08482
    """

    def __init__(self, latent_dim: int, filters: Sequence[int], config: GeneratorConfig) -> None:
        super().__init__(latent_dim, filters, config)
        rank = self.rank = config.rank
        self.head = _linear(self.hidden.outputs, len(filters) * rank * rank, config, activated=False)
        self.left = nn.ParameterList([torch.randn(count, rank) / math.sqrt(rank) for count in filters])
        self.right = nn.ParameterList([torch.randn(rank, config.code_size) / math.sqrt(rank) for _ in filters])

    def forward(self, latents: Tensor) -> list[Tensor]:
        """Map latents ``(S, latent_dim)`` to codes, one ``(S, filters, code_size)`` for every bank."""
        inner = self.head(self.hidden(latents)).reshape(len(latents), -1, self.rank, self.rank)
        return [left @ middle @ right for left, middle, right in zip(self.left, inner.unbind(1), self.right, strict=True)]


_EXTRACTORS: dict[str, type[Extractor]] = {"mlp": MLPExtractor, "matrix": MatrixExtractor}


def _rows_of(parameter: Tensor, components: Tensor, own_gradient: float) -> Tensor:
    """What the components have of their own, ``(S, ...)`` from ``(components, ...)``, with its gradient multiplied."""
    rows = parameter[components]
    if own_gradient != 1 and rows.requires_grad:
        rows.register_hook(lambda gradient: own_gradient * gradient)
    return rows


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
        self.hidden = _Hidden(config.code_size, widths, config)
        self.head = _linear(self.hidden.outputs, bank.filter_size, config, activated=False)
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
        offset = _rows_of(self.offset, components, own_gradient)
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


class Generator(nn.Module):
    r"""The whole map from latents to weights.

    .. math:: z \to \mathrm{codes} = m_k + \sigma E(z) \to \mathrm{filters} = W_l(\mathrm{code}) \to \theta

    References:
        | A Generative Model for Sampling High-Performance and Diverse Weights for Neural Networks (Deutsch et al., 2019)
        | https://arxiv.org/abs/1905.02898

    Args:
        banks: The filter banks of the target.
        initial: The target's own value of every generated parameter.
        config: What the generator is made of.
        latent_dim: Numbers in z.
        components: Mean codes per filter.
        first: ``(n, latent_dim)``, latents of the prior; the batch norms take their first running statistics from them.
    """

    def __init__(
        self,
        banks: FilterBanks,
        initial: Mapping[str, Tensor],
        config: GeneratorConfig,
        latent_dim: int,
        components: int,
        first: Tensor,
    ) -> None:
        super().__init__()
        dtypes = {value.dtype for value in initial.values()}
        if len(dtypes) > 1:
            raise ValueError(f"the generated parameters have dtypes {sorted(map(str, dtypes))}; convert the target to one")
        if components > 1 and config.start == "paper":
            raise ValueError("the paper's start has no mean codes, so components must be 1; set start='mean_weights'")
        self.banks = banks
        self.extractor = _EXTRACTORS[config.extractor](latent_dim, [bank.filters for bank in banks], config)
        self.spread = 1.0 if config.start == "paper" else config.spread
        self.mean_codes = (
            None if config.start == "paper" else nn.Parameter(torch.randn(components, banks.filters, config.code_size))
        )
        filters = banks.flatten({name: value.detach()[None].float() for name, value in initial.items()})
        self.weight_generators = nn.ModuleList(
            WeightGenerator(bank, values, config.widths(index, len(banks)), components, config)
            for index, (bank, values) in enumerate(zip(banks, filters, strict=True))
        )
        self._warm_up(first, components)
        self.to(dtypes.pop())

    @torch.no_grad()
    def _warm_up(self, first: Tensor, components: int) -> None:
        """Give the running statistics of the batch norms their values at step 0."""
        norms = [module.inner for module in self.modules() if isinstance(module, _Norm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        codes = self.codes(first.to(next(self.parameters())), torch.arange(len(first)) % components)
        for weight_generator, code in zip(self.weight_generators, codes, strict=True):
            assert isinstance(weight_generator, WeightGenerator)
            weight_generator.hidden(code)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def codes(self, latents: Tensor, components: Tensor, own_gradient: float = 1.0) -> list[Tensor]:
        """Map latents ``(S, latent_dim)`` and components ``(S,)`` to codes, one ``(S, filters, code_size)`` for every bank."""
        codes: list[Tensor] = self.extractor(latents)
        if self.mean_codes is None:
            return codes
        means = _rows_of(self.mean_codes, components, own_gradient).split([bank.filters for bank in self.banks], dim=1)
        return [mean + self.spread * code for mean, code in zip(means, codes, strict=True)]

    def forward(self, latents: Tensor, components: Tensor, own_gradient: float = 1.0) -> dict[str, Tensor]:
        """Generate the weights of S networks.

        Args:
            latents: ``(S, latent_dim)``.
            components: ``(S,)``, integers.
            own_gradient: What the gradient of mean codes and offsets is multiplied by. In a loss that is the mean over S
                networks the share of a component shrinks with the number of components; multiplied by that number, the
                learning rate and the weight decay of one network fit every component.

        Returns:
            ``{name: (S, *shape)}`` for every generated parameter, in the generator's dtype also under autocast.
        """
        codes = self.codes(latents, components, own_gradient)
        filters = [
            generate(code, components, own_gradient) for generate, code in zip(self.weight_generators, codes, strict=True)
        ]
        dtype = next(self.parameters()).dtype
        return {name: value.to(dtype) for name, value in self.banks.assemble(filters).items()}
