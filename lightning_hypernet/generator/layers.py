"""The layers that extractors and weight generators share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hypernet.generator.config import GeneratorConfig

ACTIVATIONS = {"leaky_relu": nn.LeakyReLU, "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}


def linear(inputs: int, outputs: int, config: GeneratorConfig, activated: bool) -> nn.Linear:
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


class Norm(nn.Module):
    """Batch norm; with a single vector to normalise it uses its running statistics."""

    def __init__(self, width: int, config: GeneratorConfig) -> None:
        super().__init__()
        self.inner = nn.BatchNorm1d(width, eps=config.norm_eps, momentum=config.norm_momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the columns of ``(vectors, width)``."""
        norm = self.inner
        if self.training and len(x) > 1:
            normal: Tensor = norm(x)
            return normal
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


def _norm(width: int, config: GeneratorConfig) -> nn.Module:
    if config.norm == "batch":
        return Norm(width, config)
    return nn.LayerNorm(width, eps=config.norm_eps) if config.norm == "layer" else nn.Identity()


class Hidden(nn.Module):
    """Hidden layers: linear, activation, norm, and the input again where widths agree and the configuration says so."""

    def __init__(self, inputs: int, widths: Sequence[int], config: GeneratorConfig) -> None:
        super().__init__()
        self.residual = config.residual
        self.linears = nn.ModuleList()
        self.norms = nn.ModuleList()
        for width in widths:
            self.linears.append(linear(inputs, width, config, activated=True))
            self.norms.append(_norm(width, config))
            inputs = width
        self.outputs = inputs
        activation = ACTIVATIONS[config.activation]
        self.activation = activation(config.slope) if activation is nn.LeakyReLU else activation()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(vectors, inputs)`` to ``(vectors, outputs)``."""
        for layer, norm in zip(self.linears, self.norms, strict=True):
            y = norm(self.activation(layer(x)))
            x = x + y if self.residual and x.shape == y.shape else y
        return x


def rows_of(parameter: Tensor, components: Tensor, own_gradient: float) -> Tensor:
    """What the components have of their own, ``(S, ...)`` from ``(components, ...)``, with its gradient multiplied.

    Of one component ``(1, ...)``: nothing is gathered.
    """
    if len(parameter) == 1:
        return parameter
    rows = parameter[components]
    if own_gradient != 1 and rows.requires_grad:
        rows.register_hook(lambda gradient: own_gradient * gradient)
    return rows


def added(fresh: Tensor, other: Tensor) -> Tensor:
    """The sum, in place of a tensor that nobody else has; of another type, as under autocast, anew and in the finer one."""
    return fresh.add_(other) if fresh.dtype == other.dtype else fresh + other
