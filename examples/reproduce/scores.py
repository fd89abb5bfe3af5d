"""What the members of a population make of a set of images, in numbers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from data import Images
from lightning_hypernet.metrics import population_metrics

BATCH = 500


@torch.no_grad()
def show(metrics: Sequence[Metric | MetricCollection], members: Callable[[Tensor], Tensor], images: Images) -> None:
    """Update metrics with the predictions of members for a set."""
    for inputs, labels in images.loader(BATCH, shuffle=False):
        predicted = members(inputs)
        for metric in metrics:
            metric.update(predicted, labels)


def measure(members: Callable[[Tensor], Tensor], images: Images) -> dict[str, float]:
    """Every metric of the predictions.

    Args:
        members: Maps a batch to logits ``(members, batch, 10)``.
        images: The set.

    Returns:
        The value of each metric by name.
    """
    metrics = population_metrics(10).to(images.images.device)
    show([metrics], members, images)
    return {name: round(float(value), 5) for name, value in metrics.compute().items()}
