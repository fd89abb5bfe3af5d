"""What sampled networks make of a data set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.analysis.batches import labelled
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.metrics.base import checked_labels
from lightning_hypernet.population import Population, check_population
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.values import instance


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
        TypeError: If something is not what it must be.
        ValueError: If the loader is empty, or labels are no classes.
    """
    instance("hypernet", hypernet, Hypernet, "a Hypernet")
    check_population(population)
    correct, count = torch.zeros(len(population), dtype=torch.long), 0
    with evaluating(hypernet):
        for inputs, labels in labelled(loader, population.latents.z.device):
            outputs = hypernet.run(population, inputs)
            labels = checked_labels(labels, outputs)
            correct += (outputs.argmax(-1) == labels).sum(1).cpu()
            count += len(labels)
    return correct.double().div(count).float()
