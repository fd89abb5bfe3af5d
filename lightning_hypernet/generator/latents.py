"""Latents: what networks are generated from; and the priors that draw them."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributions import Distribution, Normal, constraints
from torch.distributions.constraints import Constraint

from lightning_hypernet.values import guess, number, real, whole


@dataclass(frozen=True, eq=False)
class Latents:
    """What S networks are generated from.

    Args:
        z: ``(S, latent_dim)``.
        component: ``(S,)``, integers: which component of the prior each z belongs to; zeros if there is one.
        context: ``(S, context_dim)``, the condition of each network; None where there are no conditions.
    """

    z: Tensor
    component: Tensor
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, index: slice | Tensor) -> Latents:
        """Some of them; takes a slice or a tensor of indices."""
        return self.map(lambda value: value[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> Latents:
        """Change every tensor."""
        return Latents(change(self.z), change(self.component), None if self.context is None else change(self.context))

    def to(self, reference: Tensor) -> Latents:
        """Move to the device of another tensor, and real numbers to its type."""
        return self.map(lambda value: value.to(reference) if value.is_floating_point() else value.to(reference.device))

    def given(self, context: Tensor | None) -> Latents:
        """The same latents under another condition, ``(S, context_dim)`` or ``(context_dim,)`` for all."""
        if context is not None:
            context = context.expand(len(self), context.shape[-1])
        return Latents(self.z, self.component, context)


def as_numbers(name: str, value: Any) -> Tensor:
    """Numbers as a tensor.

    Raises:
        TypeError: If they are none.
        ValueError: If one is NaN or infinite.
    """
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be numbers, not {value!r}") from error
    if tensor.is_complex():
        raise TypeError(f"{name} must be real numbers, not {tensor.dtype}")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} must be finite, and holds NaN or infinite numbers")
    return tensor


class Prior(nn.Module, ABC):
    """The distribution of latents.

    A prior has one method to write, `sample`; where it knows its density, `log_prob` as well. It may own parameters, which
    join the optimizer. Every draw is seeded by the prior's seed, the number of the draw and the rank: ranks draw different
    networks, and a restored state continues bit for bit. The global random state is left alone.

    Args:
        latent_dim: Numbers in z.
        components: Number of components.
    """

    def __init__(self, latent_dim: int, components: int = 1) -> None:
        super().__init__()
        self.latent_dim, self.components = latent_dim, components
        self.seed, self.draws = torch.initial_seed() % 2**62, 0

    @abstractmethod
    def sample(self, component: Tensor) -> Tensor:
        """Draw a z for every component: ``(S,)`` integers to ``(S, latent_dim)``, with torch's global random numbers."""

    def log_prob(self, latents: Latents) -> Tensor:
        """Log density of latents, ``(S,)``, in nats: of z and its component, which are drawn evenly.

        Raises:
            NotImplementedError: If the prior does not know its density.
        """
        raise NotImplementedError(f"{type(self).__name__} does not know its density; choose a prior with log_prob")

    @property
    def support(self) -> Constraint:
        """Where the density of z is positive, a constraint of `torch.distributions`; by itself all numbers."""
        return constraints.real

    def draw(self, n: int, component: int | None = None) -> Latents:
        """Draw latents.

        Args:
            n: How many.
            component: The component of all; None: all components evenly, in random order.

        Returns:
            n latents without a condition, on the prior's device.

        Raises:
            ValueError: If the component does not exist.
        """
        if component is not None and not 0 <= (component := whole("component", component, None)) < self.components:
            raise ValueError(f"components must lie in 0 to {self.components - 1}, not [{component}]")
        rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
        key = f"{self.seed}-{self.draws}-{rank}"
        self.draws += 1
        if component is None and self.components > 1:
            with self._seeded(f"{key}-components"):
                rounds = range(n // self.components + 1)
                chosen = torch.cat([torch.randperm(self.components, device="cpu") for _ in rounds])[:n]
        else:
            chosen = torch.full((n,), component or 0, device="cpu")
        chosen = chosen.to(self._device)
        with self._seeded(key):
            return Latents(self.sample(chosen), chosen)

    def renewed(self, latents: Latents) -> Latents:
        """The members' latents, drawn anew with the same random numbers where the prior has parameters, as it is now."""
        if next(self.parameters(), None) is None:
            return latents
        with self._seeded(f"{self.seed}-members"):
            return Latents(self.sample(latents.component), latents.component, latents.context)

    @property
    def _device(self) -> torch.device:
        return next((value.device for value in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    @contextmanager
    def _seeded(self, key: str) -> Iterator[None]:
        """Seed torch's random numbers, of the prior's device too, and put them back."""
        seed, device = random.Random(key).getrandbits(62), self._device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield

    def get_extra_state(self) -> dict[str, int]:
        """Seed and number of draws."""
        return {"seed": self.seed, "draws": self.draws}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Continue the random numbers of a checkpoint, bit for bit."""
        self.seed, self.draws = whole("the prior's seed", state["seed"], None), whole("the prior's draws", state["draws"], 0)

    def _evenly(self, log_prob: Tensor) -> Tensor:
        """The log density of z ``(S, latent_dim)`` or ``(S,)`` with that of its component."""
        return log_prob.reshape(len(log_prob), -1).sum(1) - math.log(self.components)


class NormalPrior(Prior):
    """Independent standard normal numbers."""

    def sample(self, component: Tensor) -> Tensor:
        """Draw a z for every component: ``(S,)`` integers to ``(S, latent_dim)``."""
        return torch.randn(len(component), self.latent_dim, device="cpu")

    def log_prob(self, latents: Latents) -> Tensor:
        """Log density of latents, ``(S,)``, in nats."""
        return self._evenly(Normal(0.0, 1.0).log_prob(latents.z))


class UniformPrior(Prior):
    """Independent numbers, uniform on [-1, 1]."""

    def sample(self, component: Tensor) -> Tensor:
        """Draw a z for every component: ``(S,)`` integers to ``(S, latent_dim)``."""
        return torch.rand(len(component), self.latent_dim, device="cpu") * 2 - 1

    @property
    def support(self) -> Constraint:
        """The cube."""
        return constraints.interval(-1.0, 1.0)

    def log_prob(self, latents: Latents) -> Tensor:
        """Log density of latents, ``(S,)``, in nats; minus infinity outside of the cube."""
        inside = (latents.z.abs() <= 1).all(1)
        return self._evenly(torch.where(inside, -self.latent_dim * math.log(2), -math.inf).to(latents.z))


class MixturePrior(Prior):
    """A normal distribution of its own for every component, whose means and deviations are trained.

    Args:
        latent_dim: Numbers in z.
        components: Number of components.
        separation: Standard deviation of the means at the start.
    """

    def __init__(self, latent_dim: int, components: int = 1, separation: float = 1.0) -> None:
        super().__init__(latent_dim, components)
        separation = real("separation", separation, 0)
        self.mean = nn.Parameter(separation * torch.randn(components, latent_dim))
        self.log_std = nn.Parameter(torch.zeros(components, latent_dim))

    def sample(self, component: Tensor) -> Tensor:
        """Draw a z for every component: ``(S,)`` integers to ``(S, latent_dim)``."""
        noise = torch.randn(len(component), self.latent_dim, device="cpu").to(self.mean)
        return self.mean[component] + self.log_std[component].exp() * noise

    def log_prob(self, latents: Latents) -> Tensor:
        """Log density of latents, ``(S,)``, in nats."""
        own = Normal(self.mean[latents.component], self.log_std[latents.component].exp())
        return self._evenly(own.log_prob(latents.z))


class DistributionPrior(Prior):
    """A distribution of torch, of single numbers or of vectors.

    Args:
        latent_dim: Numbers in z.
        components: Number of components.
        distribution: The distribution, or the name of its class in `torch.distributions`.
        arguments: What the class is made with, where it is named: numbers or lists of numbers.

    Raises:
        ValueError: If there is no such distribution, or its vectors have another size.
    """

    def __init__(
        self, latent_dim: int, components: int = 1, distribution: Distribution | str = "Laplace", **arguments: Any
    ) -> None:
        super().__init__(latent_dim, components)
        if isinstance(distribution, str):
            distribution = _distribution(distribution, arguments)
        self.distribution = distribution
        self._shape = (*distribution.batch_shape, *distribution.event_shape)
        if self._shape not in ((), (latent_dim,)):
            raise ValueError(f"the prior draws numbers of shape {self._shape}, and latents have {latent_dim}: set latent_dim")

    def sample(self, component: Tensor) -> Tensor:
        """Draw a z for every component: ``(S,)`` integers to ``(S, latent_dim)``."""
        n = len(component)
        drawn = self.distribution.sample(torch.Size((n,) if self._shape else (n, self.latent_dim)))
        return drawn if drawn.is_floating_point() else drawn.to(torch.get_default_dtype())

    @property
    def support(self) -> Constraint:
        """That of the distribution."""
        return self.distribution.support or constraints.real

    def log_prob(self, latents: Latents) -> Tensor:
        """Log density of latents, ``(S,)``, in nats."""
        return self._evenly(self.distribution.log_prob(latents.z))


PRIORS: dict[str, type[Prior]] = {
    "normal": NormalPrior,
    "uniform": UniformPrior,
    "mixture": MixturePrior,
    "torch": DistributionPrior,
}
"""The simple priors, by name."""


def _distribution(name: str, arguments: Mapping[str, Any]) -> Distribution:
    """The distribution of torch with a name, its arguments numbers or lists of them."""
    there = [key for key, one in vars(torch.distributions).items() if isinstance(one, type) and issubclass(one, Distribution)]
    if name not in there:
        raise ValueError(f"torch.distributions has no distribution {name!r}{guess(name, there)}")
    values = {}
    for key, value in arguments.items():
        read = [number(one) for one in value] if isinstance(value, (list, tuple)) else number(value)
        try:
            values[key] = torch.as_tensor(read, dtype=torch.get_default_dtype())
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{key} of the prior's {name} must be a number or a list of numbers, not {value!r}") from None
    make: Callable[..., Distribution] = getattr(torch.distributions, name)
    try:
        return make(**values)
    except ValueError as error:
        raise ValueError(f"the prior's {name}: {' '.join(str(error).split())}") from error
