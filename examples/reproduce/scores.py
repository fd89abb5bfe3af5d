"""What the members of a population make of a set of images, in numbers."""

from collections.abc import Callable

import torch
from data import Images
from torch import Tensor

from lightning_hypernet.metrics import population_metrics

BATCH = 500


@torch.no_grad()
def measure(members: Callable[[Tensor], Tensor], images: Images) -> dict[str, float]:
    """Every metric of the predictions.

    Args:
        members: Maps a batch to logits ``(members, batch, 10)``.
        images: The set.

    Returns:
        The value of each metric by name.
    """
    metrics = population_metrics(10).to(images.images.device)
    for inputs, labels in images.loader(BATCH, shuffle=False):
        metrics.update(members(inputs), labels)
    return {name: round(float(value), 5) for name, value in metrics.compute().items()}
