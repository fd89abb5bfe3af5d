"""What sampled networks make of a data set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.population import Population
from lightning_hypernet.target.modes import evaluating


@torch.no_grad()
def accuracies(hypernet: Hypernet, population: Population, loader: Iterable[Any]) -> Tensor:
    """Accuracy of every network, in evaluation mode.

    Args:
        hypernet: The Hypernet.
        population: S networks of it.
        loader: Batches ``(inputs, labels)``.

    Returns:
        ``(S,)``.

    Raises:
        ValueError: If the loader is empty.
    """
    correct, count = torch.zeros(len(population), dtype=torch.long), 0
    device = population.latents.z.device
    with evaluating(hypernet):
        for inputs, labels in loader:
            predicted = hypernet.run(population, inputs.to(device)).argmax(-1)
            correct += (predicted == labels.to(device)).sum(1).cpu()
            count += len(labels)
    if not count:
        raise ValueError("the loader is empty: there is nothing to measure accuracy on")
    return correct.double().div(count).float()
