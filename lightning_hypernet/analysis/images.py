"""Filter images: the same filter of many networks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.values import guess, instance, whole


@dataclass(frozen=True)
class FilterImages:
    """One filter of several networks.

    Args:
        images: ``(samples, height, width)``.
        name: Which filter.
    """

    images: Tensor
    name: str

    def plot(self) -> tuple[Any, Any]:
        """Draw the filters side by side on one scale; returns figure and axes of matplotlib."""
        from matplotlib import pyplot

        side = math.ceil(math.sqrt(len(self.images)))
        figure, axes = pyplot.subplots(side, side, figsize=(5, 5), squeeze=False, layout="constrained")
        bound = float(self.images.abs().max())
        for ax in axes.flat:
            ax.axis("off")
        for ax, image in zip(axes.flat, self.images, strict=False):
            ax.imshow(image.numpy(), cmap="RdBu", vmin=-bound, vmax=bound)
        figure.suptitle(self.name)
        return figure, axes


def filter_images(
    hypernet: Hypernet, parameter: str, filter: int = 0, channel: int = 0, samples: int = 25, component: int | None = None
) -> FilterImages:
    """The gauge-fixed weights of one filter in several networks, as images.

    References:
        | A Generative Model for Sampling High-Performance and Diverse Weights for Neural Networks (Deutsch et al., 2019)
        | https://arxiv.org/abs/1905.02898, section 4

    Args:
        hypernet: The Hypernet.
        parameter: Name of a weight. Of a convolution a kernel is shown, of a matrix all of it.
        filter: The output channel of a convolution.
        channel: Its input channel.
        samples: Number of networks.
        component: Draw from this component of the prior alone.

    Returns:
        The images.

    Raises:
        TypeError: If this is no Hypernet.
        ValueError: If there is no such generated weight of two or four axes, or no such filter or channel of it.
    """
    instance("hypernet", hypernet, Hypernet, "a Hypernet")
    filter, channel, samples = whole("filter", filter, None), whole("channel", channel, None), whole("samples", samples)
    shapes = {name: shape for name, shape in hypernet.banks.shapes.items() if len(shape) in (2, 4)}
    if parameter not in shapes:
        raise ValueError(
            f"{parameter!r} is no generated weight of two or four axes; there are {', '.join(shapes)}{guess(parameter, shapes)}"
        )
    with torch.no_grad():
        population = hypernet.sample(samples, component)
        weights = hypernet.symmetries.gauge(population.weights, [parameter])[parameter]
    if weights.ndim == 3:
        return FilterImages(weights.cpu(), parameter)
    layer = hypernet.target.get_submodule(parameter.rpartition(".")[0])
    if isinstance(layer, nn.ConvTranspose2d):  # (in, out / groups, height, width)
        weights = weights.unflatten(1, (layer.groups, -1)).transpose(2, 3).flatten(1, 2)
    for what, index, count in zip(("filter", "channel"), (filter, channel), weights.shape[1:3], strict=True):
        if not 0 <= index < count:
            raise ValueError(f"{parameter!r} has {what}s 0 to {count - 1}, not {index}")
    return FilterImages(weights[:, filter, channel].cpu(), f"{parameter}, filter {filter}, channel {channel}")
