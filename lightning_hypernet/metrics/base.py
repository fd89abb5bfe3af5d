"""PopulationMetric, what every metric of several networks' predictions is, and the mean of a score over examples."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_hypernet.uncertainty.reading import are_probabilities


class Plottable(Metric):
    """A metric that draws itself."""

    is_differentiable = False
    full_state_update = False

    def plot(self, value: Any = None, ax: Any = None) -> Any:
        """Draw a value, or several over time; by default what `compute` returns. Returns figure and axes of matplotlib."""
        return self._plot(value, ax)


class Mean(Plottable):
    """The mean of all numbers that `tally` was given."""

    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def tally(self, values: Tensor) -> None:
        """Add numbers ``(n,)``."""
        self.total += values.double().sum().to(self.total.device)
        self.count += len(values)

    def compute(self) -> Tensor:
        """The mean, a scalar."""
        return (self.total / self.count).float()


class PopulationMetric(Plottable):
    """A metric of the class probabilities that several networks give the same examples.

    Predictions are ``(members, batch, classes)``: probabilities, or logits, which are told by numbers outside [0, 1], as
    everywhere in torchmetrics. Labels are ``(batch,)``. Every pixel of maps ``(members, batch, classes, height, width)`` with
    labels ``(batch, height, width)`` is an example, those labelled -100 are none.
    """

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            predictions: ``(members, batch, classes)``, or maps ``(members, batch, classes, ...)``: what `Ensemble.members` or
                `Hypernet.run` returns.
            labels: ``(batch,)``, of maps ``(batch, ...)``, integers.

        Raises:
            TypeError: If they are no tensors of real numbers and of integers.
            ValueError: If the shapes do not fit, there are no examples, or numbers are NaN or labels no classes.
        """
        if not isinstance(predictions, Tensor) or not isinstance(labels, Tensor):
            kinds = f"{type(predictions).__name__} and {type(labels).__name__}"
            raise TypeError(f"predictions and labels must be tensors, not {kinds}")
        shape = predictions.shape
        if len(shape) < 3 or labels.shape != (shape[1], *shape[3:]):
            raise ValueError(
                f"predictions must be (members, batch, classes) and labels (batch,), not {tuple(shape)} and "
                f"{tuple(labels.shape)}; of maps they are (members, batch, classes, ...) and (batch, ...)"
            )
        if not predictions.is_floating_point():
            raise TypeError(f"predictions must be probabilities or logits, real numbers, not {predictions.dtype}")
        if not predictions.numel():
            raise ValueError(f"predictions (members, batch, classes) are empty: {tuple(predictions.shape)}")
        if predictions.shape[2] < 2:
            raise ValueError("predictions must be of two classes or more, not 1: give (1 - p, p) for the probability p of one")
        if predictions.isnan().any() or predictions.isposinf().any():
            raise ValueError("predictions hold NaN or infinite numbers")
        if len(shape) > 3:
            predictions, labels = _pixels(predictions, labels)
            if not len(labels):
                return
        labels = checked_labels(labels, predictions)
        dtype = predictions.dtype
        predictions = predictions.detach().to(torch.promote_types(dtype, torch.float32))
        if not are_probabilities(predictions, dtype):
            predictions = predictions.softmax(-1)
            if predictions.isnan().any():
                raise ValueError("predictions hold examples whose logits are all minus infinity")
        with torch.autocast(predictions.device.type, enabled=False):
            self.add(predictions, labels)

    @abstractmethod
    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch of probabilities ``(members, batch, classes)`` and labels ``(batch,)``."""

    def same_members(self, state: Tensor, probabilities: Tensor) -> None:
        """Raise a ValueError if a state ``(members,)`` that has seen batches is of another number of members."""
        if self.update_count > 1 and len(state) != len(probabilities):
            raise ValueError(
                f"{type(self).__name__} counts for every member: it saw {len(state)}, and now there are {len(probabilities)}; "
                "reset() it before another ensemble"
            )


class MeanScore(Mean, PopulationMetric):
    """The mean over examples of a score of each."""

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch of probabilities ``(members, batch, classes)`` and labels ``(batch,)``."""
        self.tally(self.score(probabilities, labels))

    @abstractmethod
    def score(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """The score of every example, ``(batch,)``."""


def checked_labels(labels: Tensor, outputs: Tensor) -> Tensor:
    """Labels as the numbers of classes, once it is seen that they are some.

    Args:
        labels: ``(batch,)``, of any type of integers.
        outputs: ``(..., batch, classes)``.

    Raises:
        TypeError: If labels are no integers.
        ValueError: If the shapes do not fit, the outputs hold NaN, or a label is no class.
    """
    if not isinstance(labels, Tensor) or not isinstance(outputs, Tensor):
        kinds = f"{type(outputs).__name__} and {type(labels).__name__}"
        raise TypeError(f"outputs and labels must be tensors, not {kinds}")
    if outputs.ndim < 2 or labels.shape != outputs.shape[-2:-1]:
        shapes = f"{tuple(outputs.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"outputs must be (..., batch, classes) and labels (batch,), not {shapes}")
    if outputs.isnan().any():
        raise ValueError("the outputs hold NaN: check the inputs of the loader, and the weights")
    classes = outputs.shape[-1]
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, the numbers of classes, not {labels.dtype}")
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"labels must lie in 0 to {classes - 1}, not {int(labels.min())} to {int(labels.max())}")
    return labels.long()


def _pixels(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Maps as examples, one a pixel, those labelled -100 left out."""
    kept = labels != -100
    return predictions.movedim(2, -1)[:, kept], labels[kept]


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy over the last axis, in nats."""
    each: Tensor = torch.special.entr(probabilities)
    return each.sum(-1)


def log(probabilities: Tensor) -> Tensor:
    """Logarithm of probabilities, of which 0 counts as the least positive number."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


def pair_mean(matrix: Tensor) -> Tensor:
    """Mean over all ordered pairs of two different members of ``(members, members, ...)``; one alone is its own pair."""
    members = len(matrix)
    if members == 1:
        return matrix[0, 0]
    diagonal = matrix.diagonal(dim1=0, dim2=1).sum(-1)
    return (matrix.sum((0, 1)) - diagonal) / (members * (members - 1))
