"""NoisyGenerator: the built-in generator's weights with Gaussian noise, whose density given z is known."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed
from torch.nn.modules.batchnorm import _NormBase

from lightning_hypernet.generator.distribution import Setting
from lightning_hypernet.generator.generator import Generator
from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.generator.weight_generators import slot_units
from lightning_hypernet.target.modes import apart
from lightning_hypernet.values import real, switch, whole


class NoisyGenerator(Generator):
    r"""The built-in generator's weights G(z) plus Gaussian noise, independent for every weight.

    .. math:: \theta = G(z) + s \epsilon, \quad \epsilon \sim N(0, I), \qquad
        \log q(\theta | z) = -\sum_i \left[ \frac{(\theta_i - G_i(z))^2}{2 s_i^2} + \log s_i + \tfrac12 \log 2 \pi \right]

    The deviations s are fixed. Gradients of ordinary losses go through the weights to G (they are reparameterised); those of
    losses without a gradient go through `log_density`, see `Hypernet.surrogate`.

    In training the noise is seeded by a seed, the number of the draw and the rank, as the prior's draws are, and a checkpoint
    continues it bit for bit on the same kind of device. In evaluation networks are draws too, and the noise of each is seeded
    by its z: the same latents always give the same networks, on any device. A z that occurs several times in one population has
    other noise each time.

    Args:
        setting: What the generator is made for, and of.
        sigma: Standard deviation of the noise, above 0. Relative: in units of the standard deviation of a layer's initial
            values, separately for weight, bias and norm parameters. Of one that starts constant the unit is a tenth of its
            absolute value, and 0.02 if that is 0.
        relative: Whether `sigma` is relative; False: it is in the weights' own units, the same for all.

    Raises:
        ValueError: If sigma is not above 0.
    """

    density = "given_z"
    deviations: Tensor

    def __init__(self, setting: Setting, sigma: float = 0.1, relative: bool = True) -> None:
        super().__init__(setting)
        sigma, relative = real("the noisy distribution's sigma", sigma, 0, above=True), switch("relative", relative)
        unit = slot_units(self.banks, setting.initial)
        like = next(iter(setting.initial.values()))
        self.register_buffer("deviations", (sigma * (unit if relative else torch.ones_like(unit))).to(like))
        self.seed, self.draws = torch.initial_seed() % 2**62, 0

    def get_extra_state(self) -> dict[str, int]:
        """Seed and number of draws of the noise."""
        return {"seed": self.seed, "draws": self.draws}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        """Continue the noise of a checkpoint."""
        self.seed, self.draws = whole("the noise's seed", state["seed"], None), whole("the noise's draws", state["draws"], 0)

    def forward(self, latents: Latents) -> dict[str, Tensor]:
        """Draw the weights of S networks, ``{name: (S, *shape)}``; gradients go through them to the generator."""
        means, deviations = super().forward(latents), self._deviations()
        like = next(iter(means.values()))
        noise = self._drawn(means) if self.training else self._fixed(latents.z, means)
        return {name: torch.addcmul(mean, noise[name].to(like), deviations[name]) for name, mean in means.items()}

    def log_density(self, latents: Latents, weights: Mapping[str, Tensor]) -> Tensor:
        """Log density of weights given their latents, ``(S,)``, in nats, with gradients to latents, generator and weights.

        Batch norms of the generator that are in training mode normalise over these latents: pass those of a whole population.
        Their running statistics stay as they are.

        Args:
            latents: Of S networks.
            weights: ``{name: (S, *shape)}`` of every generated parameter.

        Raises:
            ValueError: If a parameter is missing or has another shape.
        """
        residuals, constant = self._standardised(latents, weights)
        return -0.5 * sum(one.square().sum(1) for one, _ in residuals) - constant

    def log_mixture(self, latents: Latents, weights: Mapping[str, Tensor]) -> Tensor:
        r"""Log density of weights under the mixture of all the latents that are given, their own among them.

        .. math:: \log \frac{1}{S} \sum_j q(\theta_i | z_j)

        Its mean is at least that of the log density of the weights, and falls to it as S grows.

        Args:
            latents: Of S networks.
            weights: Their weights, ``{name: (S, *shape)}``.

        Returns:
            ``(S,)``, in nats.

        Raises:
            ValueError: If a parameter is missing or has another shape.
        """
        residuals, constant = self._standardised(latents, weights)
        distances = own = torch.zeros((), device=latents.z.device)
        for noise, mean in residuals:
            mean = mean - mean.detach().mean(0)
            value = noise + mean
            distances = distances + value.square().sum(1)[:, None] + mean.square().sum(1) - 2 * value @ mean.T
            own = own + noise.square().sum(1)
        distances = distances - torch.diag_embed(distances.diagonal() - own)  # exact where the difference is small
        return (-0.5 * distances).logsumexp(1) - math.log(len(latents)) - constant

    def _standardised(self, latents: Latents, weights: Mapping[str, Tensor]) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Noise and mean of every parameter in units of its deviation, ``(S, numbers)``; and the constant of the density."""
        with apart([module for module in self.modules() if isinstance(module, _NormBase)]):
            means = super().forward(latents)
        if odd := [name for name, mean in means.items() if name not in weights or weights[name].shape != mean.shape]:
            raise ValueError(f"weights must hold {odd[0]} of shape {tuple(means[odd[0]].shape)}, for {len(latents)} networks")
        constant, parts = torch.zeros((), device=latents.z.device), []
        for name, deviation in self._deviations().items():
            mean, value = means[name], weights[name]
            exact = torch.promote_types(mean.dtype, torch.float32)
            mean, value, deviation = mean.to(exact), value.to(exact), deviation.to(exact)
            constant = constant + deviation.log().sum() + 0.5 * math.log(2 * math.pi) * deviation.numel()
            noise = (value - mean) / deviation
            parts.append((noise.reshape(len(noise), -1), (mean / deviation).reshape(len(noise), -1)))
        return parts, constant

    def _deviations(self) -> dict[str, Tensor]:
        """The standard deviation of every weight given z, ``{name: (1, *shape)}``."""
        slots = [(bank.filters, slot.size) for bank in self.banks for slot in bank.slots]
        spread = iter([one.expand(1, *size) for one, size in zip(self.deviations.unbind(), slots, strict=True)])
        return self.banks.assemble([[next(spread) for _ in bank.slots] for bank in self.banks])

    def _drawn(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """New noise, of the present draw."""
        rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
        device = next(iter(means.values())).device
        source = _seeded(f"noise-{self.seed}-{self.draws}-{rank}", device)
        self.draws += 1
        return {name: torch.randn(mean.shape, generator=source, dtype=torch.float32, device=device)
                for name, mean in means.items()}  # fmt: skip

    def _fixed(self, z: Tensor, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The noise that belongs to each z, made on the CPU, whose numbers are the same wherever networks run."""
        seen: Counter[str] = Counter()
        rows: list[Sequence[Tensor]] = []
        sizes = [mean[0].numel() for mean in means.values()]
        for row in map(str, z.detach().double().tolist()):
            source = _seeded(f"noise-{self.seed}-{row}-{seen[row]}", torch.device("cpu"))
            seen[row] += 1
            rows.append(torch.randn(sum(sizes), generator=source, dtype=torch.float32, device="cpu").split(sizes))
        stacked = zip(means.items(), zip(*rows, strict=True), strict=True)
        return {name: torch.stack(parts).view(mean.shape) for (name, mean), parts in stacked}


def _seeded(key: str, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(random.Random(key).getrandbits(62))
