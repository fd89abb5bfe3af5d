"""Weight distributions whose density is known: Gaussians whose noise is z."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from lightning_hypernet.generator.distribution import Setting, WeightDistribution
from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.generator.weight_generators import slot_units
from lightning_hypernet.target.filters import FilterBanks
from lightning_hypernet.values import real, whole

_RANK = 4
_LARGEST = 4096
"""Weights that a full covariance is kept for at most: its square, in float32, has 64 MiB then."""


class ExplicitDistribution(WeightDistribution, ABC):
    r"""All weights of a target as one vector, a map of the standard normal z whose density is known.

    .. math:: \theta = m + s \odot u(z), \qquad z \sim N(0, I)

    The means m start as the target's own weights and the deviations s as `sigma` times a unit; both are trained. There is one
    component and no condition.

    Args:
        setting: What the distribution is made for.
        sigma: Standard deviation of every weight at the start, above 0, in units of the standard deviation of a layer's initial
            values, separately for weight, bias and norm parameters. Of one that starts constant the unit is a tenth of its
            absolute value, and 0.02 if that is 0.

    Raises:
        ValueError: If sigma is not above 0, or there are several components, or conditions.
    """

    density: ClassVar[Literal["none", "given_z", "bound", "exact"]] = "exact"
    configured = False

    def __init__(self, setting: Setting, sigma: float = 0.1) -> None:
        super().__init__()
        name = type(self).__name__
        sigma = real(f"{name}'s sigma", sigma, 0, above=True)
        if setting.components > 1 or setting.context_dim:
            raise ValueError(
                f"{name} has one component and no condition, not components={setting.components} and "
                f"context_dim={setting.context_dim}: leave both out, or take distribution='generator'"
            )
        if len(dtypes := {value.dtype for value in setting.initial.values()}) > 1:
            raise ValueError(f"the generated parameters have dtypes {sorted(map(str, dtypes))}; convert the target to one")
        self.shapes = {key: value.shape for key, value in setting.initial.items()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        self.mean = nn.Parameter(torch.cat([value.detach().reshape(-1) for value in setting.initial.values()]))
        self.log_std = nn.Parameter((sigma * units(setting.banks, setting.initial)).log().to(self.mean))

    def vector(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Weights ``{name: (S, *shape)}`` as ``(S, weights)``.

        Raises:
            ValueError: If a parameter is missing or has another shape, or weights are of half precision.
        """
        refuse_half(self.mean)
        for name, shape in self.shapes.items():
            if name not in weights or weights[name].shape[1:] != shape:
                raise ValueError(f"weights must hold {name} of shape (networks, {', '.join(map(str, shape))})")
        return torch.cat([weights[name].reshape(len(weights[name]), -1) for name in self.shapes], dim=1)

    def coordinates(self, weights: Mapping[str, Tensor]) -> Tensor:
        """All weights, ``(S, weights)``."""
        return self.vector(weights)

    def of_vector(self, vector: Tensor) -> dict[str, Tensor]:
        """Weights ``{name: (S, *shape)}`` of ``(S, weights)``; the inverse of `vector`."""
        parts = zip(self.shapes.items(), vector.split(self.sizes, dim=1), strict=True)
        return {name: part.reshape(-1, *shape).contiguous() for (name, shape), part in parts}

    @abstractmethod
    def standardised(self, z: Tensor) -> Tensor:
        """What z ``(S, latent_dim)`` becomes before it is scaled and moved: u, ``(S, weights)``."""

    def forward(self, latents: Latents) -> dict[str, Tensor]:
        """Map S latents to weights ``{name: (S, *shape)}``, at full precision also under autocast."""
        with torch.autocast(latents.z.device.type, enabled=False):
            return self.drawn(latents)

    def drawn(self, latents: Latents) -> dict[str, Tensor]:
        """Weights of S latents, ``{name: (S, *shape)}``."""
        return self.of_vector(torch.addcmul(self.mean, self.log_std.exp(), self.standardised(latents.z)))


class Gaussian(ExplicitDistribution):
    """An `ExplicitDistribution` that torch.distributions has."""

    @abstractmethod
    def distribution(self) -> Distribution:
        """The distribution of the weights as a vector ``(weights,)``."""

    def log_density(self, latents: Latents, weights: Mapping[str, Tensor]) -> Tensor:
        """Log density of weights ``{name: (S, *shape)}``, whatever their latents, ``(S,)``, in nats."""
        density: Tensor = self.distribution().log_prob(self.vector(weights))
        return density

    def entropy(self) -> Tensor:
        """The entropy of the weights in nats, a scalar."""
        entropy: Tensor = self.distribution().entropy()
        return entropy


class MeanField(Gaussian):
    r"""Every weight an independent Gaussian.

    .. math:: \theta = m + s \odot z, \qquad q(\theta) = N(m, \mathrm{diag}(s^2))

    References:
        | Weight Uncertainty in Neural Networks (Blundell et al., 2015)
        | https://arxiv.org/abs/1505.05424

    Args:
        setting: What the distribution is made for.
        sigma: As of `ExplicitDistribution`.
    """

    @classmethod
    def noise(cls, banks: FilterBanks, options: Mapping[str, Any]) -> int:
        """One number for every weight."""
        return banks.weights

    def standardised(self, z: Tensor) -> Tensor:
        """Take z itself."""
        return z

    def distribution(self) -> Distribution:
        """Independent Gaussians."""
        return Independent(Normal(self.mean, self.log_std.exp(), validate_args=False), 1, validate_args=False)


class LowRankGaussian(Gaussian):
    r"""A Gaussian whose covariance is diagonal plus a product of thin matrices.

    .. math:: \theta = m + s \odot (z_1 + W z_2), \qquad q(\theta) = N(m, S (I + W W^T) S), \quad S = \mathrm{diag}(s)

    References:
        | Gaussian Variational Approximation with a Factor Covariance Structure (Ong, Nott and Smith, 2018)
        | https://arxiv.org/abs/1701.03208

    Args:
        setting: What the distribution is made for.
        sigma: As of `ExplicitDistribution`.
        rank: Columns of W.
    """

    def __init__(self, setting: Setting, sigma: float = 0.1, rank: int = _RANK) -> None:
        super().__init__(setting, sigma)
        rank = whole("LowRankGaussian's rank", rank)
        self.factor = nn.Parameter(0.1 * torch.randn(len(self.mean), rank, dtype=self.mean.dtype))

    @classmethod
    def noise(cls, banks: FilterBanks, options: Mapping[str, Any]) -> int:
        """One number for every weight, and one for every column of W."""
        return banks.weights + whole("LowRankGaussian's rank", options.get("rank", _RANK))

    def standardised(self, z: Tensor) -> Tensor:
        """The first numbers of z plus W times the others."""
        own, shared = z.split([len(self.mean), self.factor.shape[1]], dim=1)
        return torch.addmm(own, shared, self.factor.T)

    def distribution(self) -> Distribution:
        """A Gaussian with a covariance of low rank."""
        std = self.log_std.exp()
        return LowRankMultivariateNormal(self.mean, std[:, None] * self.factor, std.square(), validate_args=False)


class FullGaussian(Gaussian):
    r"""A Gaussian with any covariance, for small targets.

    .. math:: \theta = m + s \odot ((I + T) z), \qquad q(\theta) = N(m, L L^T), \quad L = \mathrm{diag}(s) (I + T)

    with a strictly lower triangular T.

    Args:
        setting: What the distribution is made for.
        sigma: As of `ExplicitDistribution`.

    Raises:
        ValueError: If there are more than 4,096 weights.
    """

    def __init__(self, setting: Setting, sigma: float = 0.1) -> None:
        super().__init__(setting, sigma)
        size = len(self.mean)
        self.lower = nn.Parameter(torch.zeros(size * (size - 1) // 2, dtype=self.mean.dtype))

    @classmethod
    def noise(cls, banks: FilterBanks, options: Mapping[str, Any]) -> int:
        """One number for every weight."""
        if banks.weights > _LARGEST:
            raise ValueError(
                f"a full covariance is kept for at most {_LARGEST:,} weights, and the target has {banks.weights:,}: take "
                "distribution='low_rank', or generate= fewer parameters"
            )
        return banks.weights

    def _triangle(self) -> Tensor:
        """I + T, ``(weights, weights)``."""
        size = len(self.mean)
        rows, columns = torch.tril_indices(size, size, -1, device=self.mean.device)
        return torch.eye(size, dtype=self.mean.dtype, device=self.mean.device).index_put((rows, columns), self.lower)

    def standardised(self, z: Tensor) -> Tensor:
        """I + T times z."""
        return z @ self._triangle().T

    def distribution(self) -> Distribution:
        """A Gaussian given by the Cholesky factor of its covariance."""
        return MultivariateNormal(self.mean, scale_tril=self.log_std.exp()[:, None] * self._triangle(), validate_args=False)


def refuse_half(value: Tensor) -> None:
    """Densities of many numbers are lost in half precision.

    Raises:
        ValueError: If the tensor is of such a type.
    """
    if value.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(f"a density needs single precision, and the weights are {value.dtype}: set precision='bf16-mixed'")


def units(banks: FilterBanks, initial: Mapping[str, Tensor]) -> Tensor:
    """The size of every weight at the start, ``(weights,)``, in the order of the parameters, in float64.

    Args:
        banks: The filter banks.
        initial: The target's own value of every generated parameter.

    Returns:
        The standard deviation of a slot's initial values; a tenth of the absolute value of a constant one, and 0.02 for 0.
    """
    own = iter(slot_units(banks, initial))
    spread = banks.assemble([[next(own).expand(1, bank.filters, slot.size) for slot in bank.slots] for bank in banks])
    return torch.cat([spread[name].reshape(-1) for name in initial])


def log_normal(value: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log density of independent Gaussians at ``(S, n)``, ``(S,)``."""
    return -(0.5 * ((value - mean) / log_std.exp()).square() + log_std + 0.5 * math.log(2 * math.pi)).sum(1)
