"""Readers: small networks that are fitted to tell latents from what is read of networks."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BATCH = 256
_EVERY = 10
"""Steps between two looks at the networks that stop the fit."""
_RIDGES = (1e-4, 1e-2, 1.0, 1e2, 1e4)
"""Penalties of the linear start, of which the networks that stop the fit choose."""


class Reader(nn.Module):
    """A linear map of numbers and a network with one hidden layer, added.

    Args:
        mean: Of the numbers read, ``(D,)``.
        std: Their standard deviations, ``(D,)``.
        given: Further numbers, read as they are.
        outputs: Numbers that it returns.
        hidden: Width of the hidden layer.
    """

    def __init__(self, mean: Tensor, std: Tensor, given: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(std > 0, std, 1.0))
        self.register_buffer("log_std", torch.zeros(outputs, dtype=torch.float64))
        self.noise, self.outputs = 0.0, outputs
        inputs = len(mean) + given
        self.straight = nn.Linear(inputs, outputs)
        self.bent = nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        for layer in (self.straight, self.bent[-1]):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.double()

    mean: Tensor
    std: Tensor
    log_std: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        """Map what `seen` gives to guesses ``(n, outputs)``."""
        guess: Tensor = self.straight(inputs) + self.bent(inputs)
        return guess

    def seen(self, features: Tensor, given: Tensor | None) -> Tensor:
        """Features ``(n, D)`` with noise, standardised, and what else is given: ``(n, inputs)``."""
        noisy = features + self.noise * torch.randn_like(features) if self.noise else features
        scaled = (noisy - self.mean) / self.std
        return scaled if given is None else torch.cat([scaled, given], 1)

    @torch.no_grad()
    def guess(self, features: Tensor, given: Tensor | None) -> Tensor:
        """Guesses ``(n, outputs)`` for features ``(n, D)``, with noise of their own."""
        guess: Tensor = self(self.seen(features, given))
        return guess

    def log_densities(self, z: Tensor, guess: Tensor) -> Tensor:
        """Log density of every number of z ``(n, outputs)`` around the guesses, in nats."""
        return -0.5 * ((z - guess) * (-self.log_std).exp()).square() - self.log_std - 0.5 * math.log(2 * math.pi)


def fit_reader(
    features: Tensor, wanted: Tensor, given: Tensor | None, outputs: int, noise: float, hidden: int, steps: int
) -> Reader:
    """Fit a reader, by torch's global random numbers.

    A fifth of the rows is set aside: it chooses where the fit starts and stops, and gives the deviations of a Gaussian.

    Args:
        features: What is read, ``(n, D)``, float64.
        wanted: What it shall tell: numbers ``(n, d)``, or categories ``(n,)``.
        given: What is known beside the features, ``(n, further)``.
        outputs: d, or the number of categories.
        noise: Standard deviation of the noise that is added to features.
        hidden: Width of the hidden layer.
        steps: Steps of Adam.
    """
    kept = len(features) - max(len(features) // 5, 1)
    own, rest = slice(kept), slice(kept, None)
    of = [(features[part], wanted[part], None if given is None else given[part]) for part in (own, rest)]
    spread = (of[0][0].var(0) + noise**2).sqrt()
    reader = Reader(of[0][0].mean(0), spread, 0 if given is None else given.shape[1], outputs, hidden)
    reader.noise = noise
    held = reader.seen(of[1][0], of[1][2])
    _start(reader, reader.seen(of[0][0], of[0][2]), of[0][1], held, of[1][1])
    _train(reader, of[0], held, of[1][1], steps)
    if wanted.is_floating_point():
        with torch.no_grad():
            reader.log_std = _mean_square(of[1][1] - reader(held)).log() / 2
    return reader


def _mean_square(off: Tensor) -> Tensor:
    """Mean squares of every column, never 0."""
    return off.square().mean(0).clamp(min=1e-24)


def _loss(guess: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of categories; of numbers that of the best Gaussian, but for constants; a scalar in nats."""
    if wanted.is_floating_point():
        return 0.5 * _mean_square(wanted - guess).log().sum()
    return F.cross_entropy(guess, wanted)


@torch.no_grad()
def _start(reader: Reader, inputs: Tensor, wanted: Tensor, held: Tensor, held_wanted: Tensor) -> None:
    """Start from the best of some linear maps, by the loss of held rows."""
    maps = _regressions(inputs, wanted) if wanted.is_floating_point() else _discriminants(inputs, wanted, reader.outputs)
    best, shift = min(maps, key=lambda one: float(_loss(held @ one[0] + one[1], held_wanted)))
    reader.straight.weight.copy_(best.T)
    reader.straight.bias.copy_(shift)


def _regressions(inputs: Tensor, wanted: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The linear maps of ridge regression, and their shifts."""
    mean, centre = inputs.mean(0), wanted.mean(0)
    left, sizes, right = torch.linalg.svd(inputs - mean, full_matrices=False)
    target = left.T @ (wanted - centre)
    maps = [right.T @ (target * (sizes / (sizes.square() + ridge))[:, None]) for ridge in _RIDGES]
    return [(one, centre - mean @ one) for one in maps]


def _discriminants(inputs: Tensor, wanted: Tensor, categories: int) -> list[tuple[Tensor, Tensor]]:
    """The logits of linear discriminant analysis: Gaussians with one covariance, to which a ridge is added."""
    own = [inputs[wanted == one] for one in range(categories)]
    means = torch.stack([one.mean(0) if len(one) else inputs.mean(0) for one in own]) - inputs.mean(0)
    _, sizes, right = torch.linalg.svd(inputs - inputs.mean(0) - means[wanted], full_matrices=False)
    variances = sizes.square() / len(inputs)
    maps = []
    for ridge in _RIDGES:
        matrix = (means - (means @ right.T * (variances / (variances + ridge))) @ right) / ridge
        maps.append((matrix.T, -0.5 * (means * matrix).sum(1) - inputs.mean(0) @ matrix.T))
    return maps


def _train(reader: Reader, own: tuple[Tensor, Tensor, Tensor | None], held: Tensor, held_wanted: Tensor, steps: int) -> None:
    """Adam along a cosine; the state that is best on held rows stays."""
    features, wanted, given = own
    optimizer = torch.optim.AdamW(reader.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    best, kept = math.inf, copy.deepcopy(reader.state_dict())
    for step in range(steps + 1):
        if step % _EVERY == 0 or step == steps:
            with torch.no_grad():
                found = float(_loss(reader(held), held_wanted))
            if found < best:
                best, kept = found, copy.deepcopy(reader.state_dict())
        if step == steps:
            break
        at = torch.randint(len(features), (min(_BATCH, len(features)),))
        optimizer.zero_grad()
        inputs = reader.seen(features[at], None if given is None else given[at])
        _loss(reader(inputs), wanted[at]).backward()
        optimizer.step()
        schedule.step()
    reader.load_state_dict(kept)
