"""Batches: what analyses read of a loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.target.loaders import check_loader


def labelled(loader: Iterable[Any], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels of every batch, on a device.

    Args:
        loader: Batches ``(inputs, labels)``.
        device: Where they are moved.

    Raises:
        TypeError: If it gives no batches.
        ValueError: If a batch is no pair of tensors, or there are no examples.
    """
    check_loader(loader)
    count = 0
    for batch in loader:
        pair = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch,)
        if len(pair) < 2 or not all(isinstance(one, Tensor) for one in pair):
            raise ValueError(f"the loader must give batches (inputs, labels) of tensors, not a {type(batch).__name__}")
        inputs, labels = pair
        count += len(labels)
        yield inputs.to(device), labels.to(device)
    if not count:
        raise ValueError("the loader is empty: there is nothing to measure on")
