"""WeightDistribution: what maps latents to weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_hypernet.generator.config import GeneratorConfig
from lightning_hypernet.generator.extractors import Extractor
from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.registry import Registry
from lightning_hypernet.target.filters import FilterBanks


@dataclass(frozen=True, eq=False)
class Setting:
    """What a weight distribution is made for.

    Args:
        banks: The filter banks of the target: names and shapes of the parameters.
        initial: The target's own value of every generated parameter.
        latent_dim: Numbers in z.
        components: Number of components of the prior.
        context_dim: Numbers in a condition; 0 if there are none.
        config: What the built-in generator is made of.
        first: Some latents of the prior, to start from.
        extractors: The extractors, by name.
    """

    banks: FilterBanks
    initial: Mapping[str, Tensor]
    latent_dim: int
    components: int
    context_dim: int
    config: GeneratorConfig
    first: Latents
    extractors: Registry[type[Extractor]]

    def __post_init__(self) -> None:
        if odd := [name for name, value in self.initial.items() if not value.detach().isfinite().all()]:
            raise ValueError(f"{', '.join(odd[:3])} of the target hold NaN or infinite numbers")


class WeightDistribution(nn.Module, ABC):
    """What maps latents to weights; it may know the density of what it gives.

    A subclass is made as ``cls(setting, **options)``. `density` says what `log_density` is:

    ============= ==================================================================================================
    ``"none"``    not known
    ``"given_z"`` that of weights given their z
    ``"bound"``   a number given z and weights, whose mean over both is at least that of the log density of weights
    ``"exact"``   that of weights, whatever their z
    ============= ==================================================================================================

    `configured` says whether it is made of a `GeneratorConfig`. `trunk` says whether all networks are one, which trains alone.
    `least_networks` is how many a training step draws at least where nothing else says so.
    """

    density: ClassVar[Literal["none", "given_z", "bound", "exact"]] = "none"
    configured: ClassVar[bool] = True
    trunk: bool = False
    least_networks: int = 1

    @classmethod
    def noise(cls, banks: FilterBanks, options: Mapping[str, Any]) -> int | None:
        """How many numbers z must have, independent standard normal ones; None: as many as the user likes, of any prior."""
        return None

    @abstractmethod
    def forward(self, latents: Latents) -> dict[str, Tensor]:
        """Map S latents to weights ``{name: (S, *shape)}`` of every generated parameter, contiguous, in the target's type."""

    def focus(self, center: Tensor, spread: float) -> None:
        """See where conditions will lie: near a center ``(context_dim,)``, a standard deviation apart; by itself ignored."""

    def grow_trunk(self, filters: Sequence[Tensor] | None = None) -> None:
        """From here on let all networks be one; see `Generator.grow_trunk`.

        Raises:
            ValueError: If there is no mean network to train alone.
        """
        raise ValueError(f"one network can train alone where there are mean weights, which a {type(self).__name__} has not")

    def undecayed(self, spared: Collection[str]) -> set[str]:
        """Names of its own parameters that weight decay should spare; by itself none.

        Args:
            spared: Names of the target's parameters that plain training would not decay.
        """
        return set()

    def of_banks(self) -> Sequence[nn.Module]:
        """What makes the filters of every bank, for summaries; empty if one module makes them all."""
        return ()

    def log_density(self, latents: Latents, weights: Mapping[str, Tensor]) -> Tensor:
        """Log density of weights given their latents, ``(S,)``, in nats.

        Raises:
            NotImplementedError: If it is not known.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not know the density of its weights; choose one with log_density, such as 'noisy'"
        )

    def coordinates(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The random numbers in weights ``{name: (S, *shape)}``, ``(S, numbers)``, of which `log_density` is the density."""
        return torch.cat([value.reshape(len(value), -1) for value in weights.values()], dim=1)

    def entropy(self) -> Tensor | None:
        """The entropy of the weights in nats, a scalar, where it has a closed form."""
        return None


class Density(nn.Module):
    """The log density of a distribution, as the forward pass of a module.

    Args:
        distribution: The distribution.
    """

    def __init__(self, distribution: WeightDistribution) -> None:
        super().__init__()
        self.distribution = distribution

    def forward(self, latents: Latents, weights: Mapping[str, Tensor]) -> Tensor:
        """Log density of weights, ``(S,)``."""
        return self.distribution.log_density(latents, weights)

    def held(self, latents: Latents, weights: Mapping[str, Tensor]) -> Tensor:
        """The same, its own parameters constants in it: gradients go to the weights alone."""
        constants = {name: value.detach() for name, value in self.named_parameters()}
        density: Tensor = functional_call(self, constants, (latents, weights))
        return density


def generated(distribution: WeightDistribution, latents: Latents) -> dict[str, Tensor]:
    """The weights that a distribution maps latents to."""
    weights: dict[str, Tensor] = distribution(latents)
    return weights
