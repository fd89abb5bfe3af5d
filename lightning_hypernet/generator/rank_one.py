"""RankOne: networks that share every matrix and scale what goes in and what comes out."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from lightning_hypernet.generator.distribution import Setting, WeightDistribution
from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.generator.layers import rows_of
from lightning_hypernet.values import choice, real

_RANK = 4


class RankOne(WeightDistribution):
    r"""All networks share every matrix; each scales the inputs and the outputs of its layers by factors of its own.

    .. math:: \theta = \Theta \odot u v^\top, \qquad u = u_k \odot (1 + \gamma U P z), \quad v = v_k \odot (1 + \gamma V P z)

    Theta, u_k, v_k of component k and U, V are trained for every matrix, of which u scales the first axis and v the second; P
    maps z to 4 numbers of unit variance and stays. A matrix is a parameter of two axes or more with ``weight`` in its name; all
    others, biases, norms and tokens, are each component's own. So every image trains what all networks share, whichever network
    sees it. The factors of the first component start as ones, and its mean network is the target. As those of `Generator`,
    gradients of what a component has of its own are multiplied by the number of components in training.

    References:
        | BatchEnsemble: an Alternative Approach to Efficient Ensemble and Lifelong Learning (Wen et al., 2020)
        | https://arxiv.org/abs/2002.06715

    Args:
        setting: What the distribution is made for.
        start: What the factors of further components are at first: ``"signs"``, one or minus one at random, for networks that
            are trained from the start, or ``"near_one"``, one and 0.05 times a normal number, around a trained target.
        gain: How far z moves a factor at first, relative to it.

    Raises:
        ValueError: If an option is out of range, there are conditions, or parameters are of several types.
    """

    configured = False

    def __init__(self, setting: Setting, start: str = "signs", gain: float = 0.05) -> None:
        super().__init__()
        start = choice("RankOne's start", start, ("signs", "near_one"))
        self.gain = real("RankOne's gain", gain, 0)
        if setting.context_dim:
            raise ValueError("RankOne has no conditions: leave them out, or take distribution='generator'")
        if len(dtypes := {value.dtype for value in setting.initial.values()}) > 1:
            raise ValueError(f"the generated parameters have dtypes {sorted(map(str, dtypes))}; convert the target to one")
        self.components = setting.components
        self.shapes = {name: value.shape for name, value in setting.initial.items()}
        self.matrices = {name for name, shape in self.shapes.items() if "weight" in name and len(shape) > 1}
        self.shared, self.own, self.moves = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for name, value in setting.initial.items():
            self._add(value.detach(), start if name in self.matrices else None)
        self.projection: Tensor
        projection = torch.randn(setting.latent_dim, _RANK) / math.sqrt(setting.latent_dim)
        self.register_buffer("projection", projection.to(next(iter(setting.initial.values()))))

    def _add(self, value: Tensor, start: str | None) -> None:
        """Hold what a parameter is made of; without a start it is no matrix."""
        if start is None:
            self.own.append(nn.Parameter(value.repeat(self.components, *[1] * value.ndim)))
            return
        self.shared.append(nn.Parameter(value.clone(memory_format=torch.contiguous_format)))
        for size in value.shape[:2]:
            drawn = torch.randn(self.components, size).to(value)
            factors = drawn.sign() if start == "signs" else 1 + 0.05 * drawn
            factors[0] = 1
            self.own.append(nn.Parameter(factors))
            self.moves.append(nn.Parameter(torch.randn(_RANK, size).to(value) / math.sqrt(_RANK)))

    def undecayed(self, spared: Collection[str]) -> set[str]:
        """All factors, and each component's own of what is spared."""
        own = [name for name in self.shapes for _ in range(2 if name in self.matrices else 1)]
        vectors = {f"own.{index}" for index, name in enumerate(own) if name in self.matrices or name in spared}
        return vectors | {f"moves.{index}" for index in range(len(self.moves))}

    def forward(self, latents: Latents) -> dict[str, Tensor]:
        """Map S latents to weights ``{name: (S, *shape)}``, at full precision also under autocast."""
        with torch.autocast(latents.z.device.type, enabled=False):
            code = self.gain * (latents.z.to(self.projection) @ self.projection)
            shared, own, moves = iter(self.shared), iter(self.own), iter(self.moves)
            weights = {}
            for name, shape in self.shapes.items():
                if name not in self.matrices:
                    weights[name] = self._of(next(own), latents).expand(len(latents), *shape).contiguous()
                    continue
                factors = [self._of(next(own), latents) * (1 + code @ next(moves)) for _ in range(2)]
                ones: Sequence[int] = [1] * (len(shape) - 2)
                u, v = factors[0].unflatten(1, (-1, 1, *ones)), factors[1].unflatten(1, (1, -1, *ones))
                weights[name] = next(shared) * u * v
            return weights

    def _of(self, parameter: Tensor, latents: Latents) -> Tensor:
        return rows_of(parameter, latents.component, float(self.components) if self.training else 1.0)
