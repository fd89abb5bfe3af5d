"""Paths: accuracy along lines between two sampled networks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.analysis.evaluation import accuracies
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.symmetry.alignment import align
from lightning_hypernet.target.loaders import check_loader
from lightning_hypernet.values import instance, whole


@dataclass(frozen=True)
class Paths:
    """Accuracies along paths.

    Args:
        at: ``(points,)``, from 0 to 1.
        direct: ``(pairs, points)``, along the straight line between gauge-fixed weights.
        interpolated: ``(pairs, points)``, along the straight line between latents.
    """

    at: Tensor
    direct: Tensor
    interpolated: Tensor

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw both kinds over the way; returns figure and axes of matplotlib."""
        from matplotlib import pyplot

        figure, axes = (ax.figure, ax) if ax is not None else pyplot.subplots(layout="constrained")
        for values, color, name in ((self.direct, "tab:orange", "direct"), (self.interpolated, "tab:blue", "interpolated")):
            for index, one in enumerate(100 * values):
                axes.plot(self.at, one, color=color, alpha=0.4, linewidth=1, label=name if not index else None)
        axes.set(xlabel="way from one network to the other", ylabel="accuracy, %")
        axes.legend()
        return figure, axes


def paths(
    hypernet: Hypernet,
    loader: Iterable[Any],
    pairs: int = 10,
    points: int = 40,
    component: int | None = 0,
    aligned: bool = False,
) -> Paths:
    """Accuracy between pairs of networks, straight in weights and straight in latents.

    Where the manifold of networks is bent, the direct path leaves it and the interpolated one does not. Norm statistics are
    those that the Hypernet estimates for any population.

    References:
        | A Generative Model for Sampling High-Performance and Diverse Weights for Neural Networks (Deutsch et al., 2019)
        | https://arxiv.org/abs/1905.02898, section 4

    Args:
        hypernet: The Hypernet.
        loader: Batches ``(inputs, labels)``.
        pairs: Number of pairs of networks.
        points: Points on each path, both ends included.
        component: The component both ends come from; None: any, and the interpolated path keeps that of the nearer end.
        aligned: Whether the channels of one end are first aligned to the other's, so that permutations don't count.

    Returns:
        The accuracies.

    Raises:
        TypeError: If something is not what it must be.
        ValueError: If a number is out of range, the loader is empty, or labels are no classes.
    """
    instance("hypernet", hypernet, Hypernet, "a Hypernet")
    pairs, points = whole("pairs", pairs), whole("points", points)
    check_loader(loader, again=True)
    one, other = hypernet.sample(pairs, component), hypernet.sample(pairs, component)
    at = torch.linspace(0, 1, points, device=one.latents.z.device)
    with torch.no_grad():
        ends = [hypernet.symmetries.gauge(population.weights) for population in (one, other)]
        if aligned:
            ends[1] = align(ends[1], ends[0], hypernet.symmetries.blocks)
        direct, interpolated = [], []
        for t in at:
            nearer = one.latents if t < 0.5 else other.latents
            mixed = {name: torch.lerp(value, ends[1][name], t.to(value)) for name, value in ends[0].items()}
            line = replace(one, networks=one.networks.others(mixed))
            curve = hypernet.decode(replace(nearer, z=torch.lerp(one.latents.z, other.latents.z, t.to(one.latents.z))))
            direct.append(accuracies(hypernet, line, loader))
            interpolated.append(accuracies(hypernet, curve, loader))
    return Paths(at.cpu(), torch.stack(direct, 1), torch.stack(interpolated, 1))
