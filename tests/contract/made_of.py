"""Targets by what they are made of."""

from __future__ import annotations

import timm
import torch
from timm.layers import DropPath, EvoNorm2dB0, ScaledStdConv2d
from timm.layers.grn import GlobalResponseNorm
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from tests.contract.agreement import What
from tests.contract.parts import BATCH, Function, normal, numbers


class Doubled(torch.autograd.Function):
    """A function with a gradient of its own."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient * weight, (gradient * x).sum(0) * 2


class Lists(nn.Module):
    """Parameters and layers in lists and dictionaries, one layer at every depth, and one parameter in two places."""

    def __init__(self):
        super().__init__()
        self.rows = nn.ParameterList([nn.Parameter(torch.randn(4)) for _ in range(2)])
        self.table = nn.ParameterDict({"scale": nn.Parameter(torch.ones(4)), "again": self.rows[0]})
        block = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([block, nn.Linear(4, 4), block])
        self.heads = nn.ModuleDict({"one": nn.Linear(4, 2), "two": nn.Linear(4, 3)})

    def forward(self, x):
        for block, row in zip(self.blocks, [*self.rows, self.table["again"]], strict=True):
            x = (block(x) + row).tanh() * self.table["scale"]
        return {name: head(x) for name, head in self.heads.items()}


class Language(nn.Module):
    """Embedding and output projection share a weight; positions are buffers."""

    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(9, 4), nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("position", torch.arange(5, dtype=torch.float64)[:, None] / 5)

    def forward(self, tokens):
        mask = torch.full((5, 5), float("-inf"), dtype=torch.float64).triu(1)
        return self.head(self.layer(self.embedding(tokens) + self.position, src_mask=mask))


class Rotary(nn.Module):
    """Rotary embeddings that are computed when they are first needed, and kept."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))
        self.angles = None

    def forward(self, x):
        if self.angles is None or len(self.angles) < x.shape[1]:
            self.angles = torch.outer(torch.arange(x.shape[1]), torch.tensor([1.0, 0.1])).to(x)
        cos, sin = self.angles.cos(), self.angles.sin()

        def turned(y):
            one, two = y.chunk(2, -1)
            return torch.cat([one * cos - two * sin, one * sin + two * cos], -1)

        return F.scaled_dot_product_attention(turned(self.query(x)), turned(self.key(x)), self.value(x))


class Generated(nn.Module):
    """A network that makes the weights of another layer, which is run by `functional_call`."""

    def __init__(self):
        super().__init__()
        self.maker = nn.Linear(2, 9)
        self.code = nn.Parameter(torch.randn(2))

    def forward(self, x):
        inner = nn.Linear(3, 3, bias=False, device="meta")
        return torch.func.functional_call(inner, {"weight": self.maker(self.code).view(3, 3)}, (x,)).tanh()


class Force(nn.Module):
    """Minus the gradient of an energy by the inputs, as networks of molecules have."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.energy(x)
            (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return {"energy": energy, "force": -gradient}


class Adapted(nn.Module):
    """A frozen layer with an addition of low rank, and layers that are conditioned by a second input."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(4, 4).requires_grad_(False), nn.Parameter(torch.randn(2, 4)), nn.Linear(2, 4)
        self.film = nn.Linear(2, 8)

    def forward(self, x, condition):
        scale, shift = self.film(condition).chunk(2, 1)
        return self.base(x) * (1 + scale) + shift + self.up(x @ self.down.T)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.middle = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.up, self.last = nn.ConvTranspose2d(8, 3, 2, stride=2), nn.Conv2d(5, 2, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        low = self.norm(self.down(x)).relu()
        return self.last(torch.cat([self.up(torch.cat([self.middle(low), low], 1)), x], 1))


class Cells(nn.Module):
    """Recurrent cells in a loop."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.GRUCell(3, 4), nn.LSTMCell(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h, state = x.new_zeros(len(x), 4), None
        for step in x.unbind(1):
            h = self.first(step, h)
            state = self.second(h, state)
        return self.head(state[0])


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).T


@torch.jit.script
def scripted(x: torch.Tensor, power: int) -> torch.Tensor:
    if power > 1:
        x = x.tanh()
    return x * power


def residual(net, x):
    x = x + net.norm(net.first(x)).relu_()
    return net.last(x + net.drop(net.second(x)))


def with_script():
    part = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh()).requires_grad_(False))
    return nn.Sequential(nn.Linear(3, 4), part, nn.Linear(4, 2))


def lazy():
    net = nn.Sequential(nn.LazyConv1d(3, 2), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    net(torch.zeros(2, 2, 5))
    return net


def norms(norm, **options):
    """A norm layer between two others."""
    return lambda: nn.Sequential(nn.Conv1d(2, 4, 2), norm(4, **options), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))


def vit(**options):
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 4, "depth": 1, "num_heads": 2, "num_classes": 2}
    return timm.models.vision_transformer.VisionTransformer(**sizes, **options)


def convnext():
    return timm.models.convnext.ConvNeXt(
        depths=(1, 1, 1, 1), dims=(4, 4, 4, 6), patch_size=1, num_classes=2, drop_path_rate=0.2
    )


def tokens():
    return (torch.randint(0, 9, (BATCH, 5)),)


VECTORS, IMAGES, CURVES = numbers(3), numbers(2, 4, 4), numbers(2, 5)
MADE_OF = {
    "own_gradient": What(
        lambda: Function(lambda net, x: Doubled.apply(x, net.layer.weight[0]) + net.layer(x), layer=nn.Linear(3, 3)), VECTORS
    ),
    "lists_and_dictionaries": What(Lists, numbers(4)),
    "language": What(Language, tokens),
    "rotary": What(Rotary, numbers(5, 4)),
    "generated": What(Generated, VECTORS),
    "force": What(Force, VECTORS),
    "adapted": What(Adapted, lambda: (normal(BATCH, 4), normal(BATCH, 2))),
    "unet": What(UNet, IMAGES),
    "cells": What(Cells, numbers(4, 3)),
    "residual_stream": What(
        lambda: Function(
            residual,
            first=nn.Linear(3, 3),
            norm=nn.BatchNorm1d(3),
            second=nn.Linear(3, 3),
            drop=nn.Dropout(0.3),
            last=nn.Linear(3, 2),
        ),
        VECTORS,
        drawn=True,
    ),
    "dropout": What(
        lambda: nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.5), nn.ReLU(), nn.AlphaDropout(0.2), nn.Linear(6, 2)),
        VECTORS,
        drawn=True,
    ),
    "random_slopes": What(lambda: nn.Sequential(nn.Linear(3, 6), nn.RReLU(), nn.Linear(6, 2)), VECTORS, drawn=True),
    "stochastic_depth": What(
        lambda: Function(lambda net, x: x + net.path(net.layer(x)), layer=nn.Linear(3, 3), path=DropPath(0.4)),
        VECTORS,
        drawn=True,
    ),
    "noise_in_evaluation": What(
        lambda: Function(lambda net, x: F.dropout(net.layer(x), 0.3, training=True), layer=nn.Linear(3, 4)), VECTORS, drawn=True
    ),
    "lazy": What(lazy, CURVES),
    "scripted_function": What(lambda: Function(lambda net, x: scripted(net.layer(x), 2), layer=nn.Linear(3, 4)), VECTORS),
    "scripted_part": What(with_script, VECTORS),
    "scripted_and_generated": What(lambda: torch.jit.script(nn.Linear(3, 4)), VECTORS, refuses={"wrapping": "were scripted"}),
    "symmetric_weights": What(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), symmetric()), VECTORS),
    "batch_norm_cumulative": What(norms(nn.BatchNorm1d, momentum=None), CURVES),
    "batch_norm_without_scale": What(norms(nn.BatchNorm1d, affine=False), CURVES),
    "batch_norm_without_statistics": What(norms(nn.BatchNorm1d, track_running_stats=False), CURVES),
    "instance_norm_with_statistics": What(
        norms(nn.InstanceNorm1d, affine=True, track_running_stats=True),
        CURVES,
        averages={"1.running_mean": 0.9, "1.running_var": 0.9},
    ),
    "layer_norm_over_two_axes": What(
        lambda: nn.Sequential(nn.LayerNorm((2, 5)), nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(12, 2)), CURVES
    ),
    "evo_norm": What(
        lambda: nn.Sequential(nn.Conv2d(2, 4, 2), EvoNorm2dB0(4), nn.Flatten(), nn.Linear(36, 2)),
        IMAGES,
        averages={"1.running_var": 0.9},
    ),
    "response_norm": What(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 2), nn.GELU(), GlobalResponseNorm(4, channels_last=False), nn.Flatten(), nn.Linear(36, 2)
        ),
        IMAGES,
    ),
    "standardised_weights": What(lambda: nn.Sequential(ScaledStdConv2d(2, 4, 2), nn.SiLU(), nn.Conv2d(4, 2, 1)), IMAGES),
    "depthwise": What(
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 2, groups=2), nn.PReLU(4), nn.Conv1d(4, 4, 2, groups=4, padding_mode="circular"), nn.MaxPool1d(2)
        ),
        CURVES,
    ),
    "transposed": What(
        lambda: nn.Sequential(
            nn.ConvTranspose1d(2, 3, 2), nn.BatchNorm1d(3), nn.LeakyReLU(), nn.ConvTranspose1d(3, 2, 2, stride=2)
        ),
        CURVES,
    ),
    "shuffled_pixels": What(
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.PixelShuffle(2), nn.Upsample(scale_factor=2), nn.Conv2d(2, 1, 1)
        ),
        IMAGES,
    ),
    "gates": What(lambda: nn.Sequential(nn.Linear(3, 8), nn.GLU(), nn.Softplus(), nn.Linear(4, 4), nn.Softmax(1)), VECTORS),
    "timm_vit": What(lambda: vit(), numbers(3, 8, 8)),
    "timm_vit_with_drops": What(
        lambda: vit(drop_rate=0.1, drop_path_rate=0.2, init_values=0.1, class_token=False, global_pool="avg"),
        numbers(3, 8, 8),
        drawn=True,
    ),
    "timm_convnext": What(convnext, numbers(3, 8, 8), drawn=True),
}


def symmetric():
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer
