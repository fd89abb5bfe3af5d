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
    """Batch norm over all axes but the last; with a single vector to normalise it uses its running statistics."""

    def __init__(self, width: int, config: GeneratorConfig) -> None:
        super().__init__()
        self.inner = nn.BatchNorm1d(width, eps=config.norm_eps, momentum=config.norm_momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of ``(..., width)``."""
        flat = x.reshape(-1, x.shape[-1])
        if self.training and len(flat) > 1:
            normal: Tensor = self.inner(flat)
            return normal.reshape(x.shape)
        norm = self.inner
        return F.batch_norm(flat, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps).reshape(
            x.shape
        )


class Hidden(nn.Module):
    """Hidden layers: linear, activation, norm, and the input again where widths agree and the configuration says so."""

    def __init__(self, inputs: int, widths: Sequence[int], config: GeneratorConfig) -> None:
        super().__init__()
        self.residual = config.residual
        self.linears = nn.ModuleList()
        self.norms = nn.ModuleList()
        for width in widths:
            self.linears.append(linear(inputs, width, config, activated=True))
            norms: dict[str, nn.Module] = {"layer": nn.LayerNorm(width, eps=config.norm_eps), "none": nn.Identity()}
            self.norms.append(Norm(width, config) if config.norm == "batch" else norms[config.norm])
            inputs = width
        self.outputs = inputs
        activation = ACTIVATIONS[config.activation]
        self.activation = activation(config.slope) if activation is nn.LeakyReLU else activation()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., inputs)`` to ``(..., outputs)``."""
        for layer, norm in zip(self.linears, self.norms, strict=True):
            y = norm(self.activation(layer(x)))
            x = x + y if self.residual and x.shape == y.shape else y
        return x


def rows_of(parameter: Tensor, components: Tensor, own_gradient: float) -> Tensor:
    """What the components have of their own, ``(S, ...)`` from ``(components, ...)``, with its gradient multiplied."""
    rows = parameter[components]
    if own_gradient != 1 and rows.requires_grad:
        rows.register_hook(lambda gradient: own_gradient * gradient)
    return rows
