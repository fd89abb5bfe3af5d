"""Scatter: principal components of sampled weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.population import Population
from lightning_hypernet.values import guess, instance, whole

_CHUNK = 100
_NUMBERS = 1 << 26
"""Weights that are drawn at a time at most, but for those of one network."""
"""Networks that are there at once, of which only what is scattered is kept."""


@dataclass(frozen=True)
class Scatter:
    """Sampled weights in their principal components.

    Args:
        points: ``(samples, dimensions)``.
        explained: ``(dimensions,)``, the share of the variance that each component explains.
        components: ``(samples,)``, the component of the prior that each network belongs to.
        name: What was scattered.
    """

    points: Tensor
    explained: Tensor
    components: Tensor
    name: str

    def plot(self) -> tuple[Any, Any]:
        """Draw every pair of components below the diagonal and histograms on it; returns figure and axes of matplotlib."""
        from matplotlib import pyplot

        count = self.points.shape[1]
        figure, axes = pyplot.subplots(count, count, figsize=(1.6 * count, 1.6 * count), squeeze=False, layout="constrained")
        for row in range(count):
            for column in range(count):
                ax = axes[row, column]
                ax.set(xticks=[], yticks=[])
                if column > row:
                    ax.axis("off")
                elif column == row:
                    ax.hist(self.points[:, row], bins=30, color="tab:blue")
                else:
                    ax.scatter(self.points[:, column], self.points[:, row], s=2, c=self.components, cmap="tab10")
        figure.suptitle(f"{self.name}: {100 * self.explained.sum():.0f} % of the variance")
        return figure, axes


def scatter(
    hypernet: Hypernet,
    samples: int = 3000,
    dimensions: int = 6,
    bank: str | None = None,
    filter: int | None = None,
    component: int | None = None,
) -> Scatter:
    """Principal components of a filter, a layer or all gauge-fixed weights of sampled networks, centred, not standardised.

    References:
        | A Generative Model for Sampling High-Performance and Diverse Weights for Neural Networks (Deutsch et al., 2019)
        | https://arxiv.org/abs/1905.02898, section 4

    Args:
        hypernet: The Hypernet.
        samples: Number of networks.
        dimensions: Number of components.
        bank: Name of a filter bank, as `Hypernet.summary` lists them; None: all weights.
        filter: Which filter of the bank; None: all.
        component: Draw from this component of the prior alone.

    Returns:
        The points.

    Raises:
        TypeError: If this is no Hypernet.
        ValueError: If there is no such bank or filter, or a number is out of range.
    """
    instance("hypernet", hypernet, Hypernet, "a Hypernet")
    samples, dimensions = whole("samples", samples), whole("dimensions", dimensions)
    vectors, components = [], []
    with torch.no_grad():
        chunk = max(1, min(_CHUNK, _NUMBERS // hypernet.banks.weights))
        for first in range(0, samples, chunk):
            population = hypernet.sample(min(chunk, samples - first), component)
            vectors.append(weights_of(hypernet, population, bank, filter).flatten(1))
            components.append(population.latents.component.cpu())
        joined = torch.cat(vectors)
        vectors.clear()
        joined -= joined.mean(0)
        found, directions = torch.linalg.eigh((joined @ joined.T).double())  # of numbers of networks, not of weights
        sizes, directions = found.clamp(min=0).sqrt().flip(0).to(joined), directions.flip(1).to(joined)
    shown = min(dimensions, *joined.shape)
    variances = sizes.square()
    name = "all weights" if bank is None else f"bank {bank}" if filter is None else f"filter {filter} of bank {bank}"
    return Scatter(
        (directions * sizes)[:, :shown].cpu(),
        (variances / variances.sum().clamp(min=1e-30))[:shown].cpu(),
        torch.cat(components),
        name,
    )


def weights_of(hypernet: Hypernet, population: Population, bank: str | None, filter: int | None) -> Tensor:
    """Gauge-fixed weights of a bank or one of its filters: ``(S, filters, filter_size)``; of all: ``(S, weights)``.

    Raises:
        ValueError: If there is no such bank or filter.
    """
    if bank is None:
        if filter is not None:
            raise ValueError("a filter is one of a bank: name the bank too")
        return population.gauged
    banks = {one.name: one for one in hypernet.banks}
    if bank not in banks:
        raise ValueError(f"there is no bank {bank!r}; there are {', '.join(banks)}{guess(bank, banks)}")
    filters = banks[bank].flatten(hypernet.symmetries.gauge(population.weights, {slot.parameter for slot in banks[bank].slots}))
    if filter is None:
        return filters
    if not 0 <= (filter := whole("filter", filter, None)) < filters.shape[1]:
        raise ValueError(f"bank {bank!r} has filters 0 to {filters.shape[1] - 1}, not {filter}")
    return filters[:, [filter]]
