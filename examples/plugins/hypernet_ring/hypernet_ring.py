"""A plug-in with a layer and its filter rule, a prior and a gauge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_hypernet import Gauge, Prior, hookimpl
from lightning_hypernet.symmetry.gauge import ComposedGauge, ScaleGauge, Symmetric
from lightning_hypernet.symmetry.order import Block
from lightning_hypernet.target.filters import Rule, Slot


class RingLinear(nn.Module):
    """A linear layer of circulant blocks: every block convolves its part of the input with one ring of numbers.

    Args:
        features: Numbers in and out.
        blocks: How many blocks; it divides the features.
    """

    def __init__(self, features: int, blocks: int) -> None:
        super().__init__()
        self.blocks, self.size = blocks, features // blocks
        self.ring = nn.Parameter(torch.randn(blocks, self.size) / self.size**0.5)
        self.bias = nn.Parameter(torch.zeros(features))
        places = torch.arange(self.size)
        self.register_buffer("places", (places[:, None] - places) % self.size, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., features)`` to ``(..., features)``."""
        parts = x.reshape(*x.shape[:-1], self.blocks, self.size)
        matrices = self.ring[:, self.places]
        return torch.einsum("boi,...bi->...bo", matrices, parts).reshape(x.shape) + self.bias


def split_ring(module: RingLinear) -> Iterable[Sequence[Slot]]:
    """One filter for each block: its ring, and its part of the bias."""
    shape = (module.blocks, module.size)
    yield [Slot("ring", shape, shape), Slot("bias", (module.blocks * module.size,), shape)]


class SpherePrior(Prior):
    """Latents that are uniform on a sphere.

    Args:
        latent_dim: Numbers in z.
        components: Number of components.
        radius: That of the sphere, as a multiple of the length that standard normal numbers have.
    """

    def __init__(self, latent_dim: int, components: int = 1, radius: float = 1.0) -> None:
        super().__init__(latent_dim, components)
        self.radius = radius

    def sample(self, component: Tensor) -> Tensor:
        """Draw a z for every component: ``(S,)`` integers to ``(S, latent_dim)``."""
        z = torch.randn(len(component), self.latent_dim, device="cpu")
        return self.radius * self.latent_dim**0.5 * z / z.norm(dim=1, keepdim=True)


class EnergyGauge(Gauge):
    """Sorts the channels of every block by the sum of squares of what writes and reads them.

    Args:
        blocks: The blocks of channels whose order the function does not depend on.
        largest_first: Whether the largest come first.
    """

    def __init__(self, blocks: Sequence[Block], largest_first: bool = True) -> None:
        self.blocks, self.largest_first = blocks, largest_first

    def __call__(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Map weights ``{name: (S, *shape)}`` to weights of the same functions."""
        for block in self.blocks:
            energy = torch.stack([axis.gather(weights).detach().square().sum(-1) for axis in block.axes]).sum(0)
            weights = block.permute(weights, energy.argsort(-1, descending=self.largest_first))
        return weights


def energy_gauge(symmetries: Symmetric, largest_first: bool = True) -> Gauge:
    """The scale of channels, then their order."""
    return ComposedGauge(ScaleGauge(symmetries.groups, symmetries.scales), EnergyGauge(symmetries.blocks, largest_first))


@hookimpl
def hypernet_register_filters(register: Callable[[type[nn.Module], Rule], None]) -> None:
    """Split the layer into filters."""
    register(RingLinear, split_ring)


@hookimpl
def hypernet_register_priors(register: Callable[[str, type[Prior]], None]) -> None:
    """Make ``prior="sphere"`` work."""
    register("sphere", SpherePrior)


@hookimpl
def hypernet_register_gauges(register: Callable[[str, Callable[..., Gauge]], None]) -> None:
    """Make ``gauge="energy"`` work."""
    register("energy", energy_gauge)
