"""Targets: what a loader says of its examples, put beside what members predict."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.target.loaders import check_loader

IGNORED = -100
"""The label of pixels that count for nothing, as everywhere in torch."""


def batches(
    loader: Iterable[Any], targets: Callable[[Any], Any] | None = None, most: int | None = None
) -> Iterator[tuple[Any, Tensor]]:
    """Batches of a loader and the targets of each.

    Args:
        loader: Batches that end with their targets, unless `targets` tells where they are.
        targets: Gives the targets of a batch.
        most: Stop after that many; None: read all.

    Raises:
        TypeError: If the loader gives no batches, or the targets are no tensor.
        ValueError: If a batch has no targets, or the loader is empty.
    """
    check_loader(loader, part=most is not None)
    if targets is not None and not callable(targets):
        raise TypeError(f"targets must be a function that gives the targets of a batch, not {targets!r}")
    count = 0
    for count, batch in enumerate(itertools.islice(loader, most), 1):  # noqa: B007
        if targets is not None:
            found = targets(batch)
        elif isinstance(batch, (tuple, list)) and len(batch) > 1:
            found = batch[-1]
        else:
            raise ValueError(
                f"a batch of the loader, a {type(batch).__name__}, must end with its targets; or pass targets=, a "
                "function of a batch"
            )
        if not isinstance(found, Tensor):
            raise TypeError(f"the targets of a batch must be a tensor, not a {type(found).__name__}")
        yield batch, found
    if not count:
        raise ValueError("the loader is empty: there is nothing to calibrate on")


def labels_of(found: Tensor, log_members: Tensor) -> tuple[Tensor, Tensor]:
    """The log probabilities that members give examples, or pixels, and the labels of these, those of -100 left out.

    Args:
        found: ``(batch, ...)``, integers; for two classes 0 and 1 of any type, with an axis of one class or without.
        log_members: ``(members, batch, ..., classes)``.

    Returns:
        ``(members, examples, classes)`` and ``(examples,)``.

    Raises:
        TypeError: If labels are no integers.
        ValueError: If the shapes do not fit, or a label is no class.
    """
    classes, shape = log_members.shape[-1], log_members.shape[1:-1]
    labels = found.to(log_members.device)
    if labels.numel() == shape.numel() and labels.ndim == len(shape) + 1 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    if labels.shape != shape:
        raise ValueError(f"labels must be {tuple(shape)}, not {tuple(found.shape)}")
    if not (classes == 2 and bool(((labels == 0) | (labels == 1)).all())) and (
        labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
    ):
        raise TypeError(f"labels must be integers, the numbers of classes, not {labels.dtype}")
    flat = labels.reshape(-1).long()
    kept = flat != IGNORED
    some = flat[kept]
    if len(some) and (some.min() < 0 or some.max() >= classes):
        raise ValueError(f"labels must lie in 0 to {classes - 1}, not {int(some.min())} to {int(some.max())}")
    return log_members.reshape(len(log_members), -1, classes)[:, kept], some


def numbers_of(found: Tensor, means: Tensor) -> Tensor:
    """Targets in the shape of means, of members ``(members, batch, ...)``.

    Raises:
        TypeError: If they are no real numbers.
        ValueError: If the shapes do not fit, or they are NaN or infinite.
    """
    wanted = means.shape[1:]
    values = found.to(means.device)
    if values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"targets must be real numbers, not {values.dtype}")
    if values.shape != wanted and wanted.numel() == values.numel() and wanted[:1] == values.shape[:1]:
        squeezed = [tuple(size for size in shape if size != 1) for shape in (values.shape[1:], wanted[1:])]
        values = values.reshape(wanted) if squeezed[0] == squeezed[1] else values
    if values.shape != wanted:
        raise ValueError(f"targets must be {tuple(wanted)}, as the means are, not {tuple(found.shape)}")
    values = values.to(means)
    if not values.isfinite().all():
        raise ValueError("targets hold NaN or infinite numbers")
    return values
