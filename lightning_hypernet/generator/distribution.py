"""WeightDistribution: what maps latents to weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

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

    A subclass is made as ``cls(setting, **options)``.
    """

    @abstractmethod
    def forward(self, latents: Latents) -> dict[str, Tensor]:
        """Map S latents to weights ``{name: (S, *shape)}`` of every generated parameter, contiguous, in the target's type."""

    def focus(self, center: Tensor, spread: float) -> None:
        """See where conditions will lie: near a center ``(context_dim,)``, a standard deviation apart; by itself ignored."""

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


def generated(distribution: WeightDistribution, latents: Latents) -> dict[str, Tensor]:
    """The weights that a distribution maps latents to."""
    weights: dict[str, Tensor] = distribution(latents)
    return weights
