"""Drawing: pictures of predictions. matplotlib is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def draw_parts(aleatoric: Tensor, epistemic: Tensor, label: str, ax: Any = None) -> tuple[Any, Any]:
    """Both parts of the uncertainty of every example, one on the other, the surest example first.

    Args:
        aleatoric: ``(examples,)``.
        epistemic: ``(examples,)``.
        label: What they are.
        ax: Axes of matplotlib.

    Returns:
        Figure and axes.
    """
    figure, axes = axes_or_new(ax)
    order = (aleatoric + epistemic).argsort()
    parts = [one.detach()[order].double().cpu().numpy() for one in (aleatoric, epistemic)]
    axes.stackplot(range(len(order)), *parts, labels=["aleatoric", "epistemic"], step="mid" if len(order) < 50 else None)
    axes.set(xlabel="examples, surest first", ylabel=label)
    axes.legend(loc="upper left")
    return figure, axes


def draw_band(mean: Tensor, low: Tensor, high: Tensor, x: Tensor | None, label: str, ax: Any = None) -> tuple[Any, Any]:
    """The mean of numbers ``(examples,)`` or ``(examples, outputs)`` and their interval; args as in `draw_parts`."""
    figure, axes = axes_or_new(ax)
    at = torch.arange(len(mean)) if x is None else x.detach().flatten()
    order = at.argsort()
    place = at[order].cpu().numpy()
    columns = [one.detach().reshape(len(mean), -1)[order.to(one.device)].double().cpu().numpy() for one in (mean, low, high)]
    for index, (middle, below, above) in enumerate(zip(*(one.T for one in columns), strict=True)):
        axes.plot(place, middle, color=f"C{index}", label="mean" if not index else None)
        axes.fill_between(place, below, above, color=f"C{index}", alpha=0.25, linewidth=0, label=label if not index else None)
    axes.set(xlabel="example" if x is None else "x", ylabel="prediction")
    axes.legend()
    return figure, axes


def draw_maps(maps: Mapping[str, Tensor], label: str, ax: Any = None) -> tuple[Any, Any]:
    """Maps ``(height, width)``, by their names, side by side; on given axes that of the total alone."""
    from matplotlib import pyplot

    shown = {name: one.detach().double().cpu().numpy() for name, one in maps.items()}
    if ax is not None:
        ax.imshow(shown["total"])
        ax.set(title=f"total, {label}", xticks=[], yticks=[])
        return ax.figure, ax
    figure, axes = pyplot.subplots(1, len(shown), figsize=(3 * len(shown), 3), layout="constrained", squeeze=False)
    for one, (name, values) in zip(axes[0], shown.items(), strict=True):
        image = one.imshow(values)
        one.set(title=name, xticks=[], yticks=[])
        if name in ("total", "aleatoric", "epistemic"):
            figure.colorbar(image, ax=one, label=label)
    return figure, axes[0]


def axes_or_new(ax: Any) -> tuple[Any, Any]:
    """The figure and axes to draw on: those that were given, or new ones if they are None."""
    from matplotlib import pyplot

    return (ax.figure, ax) if ax is not None else pyplot.subplots(layout="constrained")
