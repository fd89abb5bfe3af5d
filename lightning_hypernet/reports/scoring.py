"""Scoring: what members' outputs are held against, where that is clear, and why not where it is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_hypernet.reports.tallies import ClassTally, NumberTally
from lightning_hypernet.training_step import targets_of
from lightning_hypernet.uncertainty.reading import are_probabilities
from lightning_hypernet.uncertainty.targets import IGNORED, labels_of, numbers_of

_NAMED = ("logits", "prediction")
"""Entries of outputs that say what they are."""


def tensor_of(outputs: Any) -> Tensor | None:
    """The real numbers that outputs are, or have under one of the names ``logits`` and ``prediction``; None: that is not clear.

    Args:
        outputs: What members return.
    """
    if isinstance(outputs, Mapping):
        named = [outputs[key] for key in _NAMED if key in outputs]
        outputs = named[0] if len(named) == 1 else None
    return outputs if isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.ndim > 1 else None


def kind_of(outputs: Any) -> str:
    """Outputs in which no tensor was found, in words."""
    if isinstance(outputs, Mapping):
        return f"a mapping of {', '.join(map(str, outputs))}"
    return f"a tensor of {outputs.dtype}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"


def wanted_of(batch: Any, targets: Callable[[Any], Any] | None) -> Any:
    """What the inputs of a batch should map to: what a function gives, or the last part, or a part with a known name.

    Args:
        batch: The batch.
        targets: Gives the targets of a batch; None: see above.

    Raises:
        TypeError: If the function gives no tensor.
    """
    if targets is not None:
        found = targets(batch)
        if not isinstance(found, Tensor):
            raise TypeError(f"targets must give a tensor of a batch, not a {type(found).__name__}")
        return found
    if isinstance(batch, (tuple, list)):
        return batch[-1] if len(batch) > 1 else None
    return targets_of(batch)


def class_axis(shape: torch.Size, labels: torch.Size, dim: int | None) -> int:
    """The axis of the classes in outputs ``(batch, ...)``.

    Args:
        shape: Shape of the outputs.
        labels: Shape of the labels, which have all axes but that of the classes.
        dim: The axis, if it was named.

    Raises:
        ValueError: If there is none, or several may be it.
    """
    count = len(shape)
    if dim is not None and (not -count <= dim < count or dim % count == 0):
        raise ValueError(f"reduce has dim={dim}, and outputs {tuple(shape)} have no classes there")
    allowed = range(1, count) if dim is None else [dim % count]
    fitting = [axis for axis in allowed if shape[:axis] + shape[axis + 1 :] == labels]
    if not fitting:
        raise ValueError(f"labels {tuple(labels)} do not fit outputs {tuple(shape)} without the axis of the classes")
    if len(fitting) > 1:
        raise ValueError(
            f"it is not clear which axis of outputs {tuple(shape)} holds the classes of labels {tuple(labels)}: name it, as in "
            "reduce={'name': 'mean', 'dim': -1}"
        )
    return fitting[0]


def as_classes(outputs: Tensor, labels: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor]:
    """Probabilities ``(S, n, classes)`` and labels ``(n,)``; every place of maps is an example, those of -100 are none.

    Args:
        outputs: ``(S, batch, classes)``, or ``(S, batch, ...)`` with the classes along an axis: logits, or probabilities, which
            lie in 0 to 1 and sum to 1.
        labels: ``(batch,)``, of maps ``(batch, ...)``, integers.
        dim: The axis of the classes in ``(batch, ...)``; None: the one that labels do not have.

    Raises:
        TypeError: If labels are no integers.
        ValueError: If the shapes do not fit, it is not clear where the classes are, or a label is no class.
    """
    axis = class_axis(outputs.shape[1:], labels.shape, dim)
    moved = outputs.movedim(axis + 1, -1)
    moved = moved.to(torch.promote_types(moved.dtype, torch.float32))
    if not are_probabilities(moved, outputs.dtype):
        return labels_of(labels, moved.softmax(-1))
    return labels_of(labels, moved / moved.sum(-1, keepdim=True))


def as_two_classes(outputs: Tensor, labels: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor] | None:
    """Probabilities ``(S, n, 2)`` of one logit for each label, and labels ``(n,)`` of 0 and 1; None if they are others.

    Args:
        outputs: ``(S, batch)``, or ``(S, batch, ...)`` with one number along the axis of the classes.
        labels: Of any type, in the shape of each member's outputs up to axes of one number.
        dim: The axis of the classes in ``(batch, ...)``; None: axis 1.
    """
    shape = outputs.shape[1:]
    axis = (1 if dim is None else dim) % len(shape)
    if _plain(labels.shape) != _plain(shape) or not (len(shape) == 1 or (axis and shape[axis] == 1)):
        return None
    labels = labels.flatten()
    kept = labels != IGNORED
    labels, logits = labels[kept], outputs.flatten(1)[:, kept]
    if not bool(((labels == 0) | (labels == 1)).all()):
        return None
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.stack([F.sigmoid(-logits), F.sigmoid(logits)], -1), labels.long()


def as_numbers(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs ``(S, n)`` and the numbers ``(n,)`` they should be.

    Args:
        outputs: ``(S, batch, ...)``.
        targets: ``(batch, ...)``, of one shape with each member's outputs up to axes of one number.

    Raises:
        TypeError: If targets are no real numbers.
        ValueError: If the shapes differ, or targets are probabilities or several labels for each example.
    """
    numbers = numbers_of(targets, outputs)
    if numbers.ndim > 1 and numbers[0].numel() > 1:
        if bool(((numbers == 0) | (numbers == 1)).all()):
            raise ValueError("the targets are 0 and 1, several for each example: labels, of which no error of numbers is told")
        between = bool(((numbers >= 0) & (numbers <= 1)).all())
        if between and any(bool(((numbers.sum(axis) - 1).abs() < 1e-3).all()) for axis in (1, -1)):
            raise ValueError("the targets are probabilities of classes: give labels")
    return outputs.flatten(1), numbers.flatten()


@dataclass(frozen=True)
class Batch:
    """What a batch says of outputs.

    Args:
        kind: ``"classes"``, ``"two"`` of which one logit is told, ``"numbers"``, or ``"outputs"`` with nothing to hold them to.
        classes: Probabilities and labels.
        numbers: Outputs and the numbers they should be.
        reason: Why there is nothing, though there are targets.
    """

    kind: str
    classes: tuple[Tensor, Tensor] | None = None
    numbers: tuple[Tensor, Tensor] | None = None
    reason: str = ""


def held(outputs: Tensor, targets: Any, dim: int | None) -> Batch:
    """Hold outputs against targets.

    Args:
        outputs: ``(S, batch, ...)``.
        targets: What they should be; None: nobody knows.
        dim: The axis of the classes in ``(batch, ...)``, if it was named.

    Raises:
        TypeError: If labels are no integers.
        ValueError: If a label is no class.
    """
    if targets is None:
        return Batch("outputs")
    if not isinstance(targets, Tensor):
        return Batch("outputs", reason=f"the targets are no tensor but a {type(targets).__name__}: pass targets=")
    targets = targets.to(outputs.device)
    whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if whole and targets.ndim == outputs.ndim - 1 > 1 == targets.shape[1] < outputs.shape[2]:
        targets = targets.squeeze(1)
    try:
        two = as_two_classes(outputs, targets, dim)
        if two is not None:
            return Batch("two", two, (outputs.flatten(1), targets.flatten().to(outputs)))
        if not whole or _plain(targets.shape) == _plain(outputs.shape[1:]):
            return Batch("numbers", numbers=as_numbers(outputs, targets))
        class_axis(outputs.shape[1:], targets.shape, dim)
    except (TypeError, ValueError) as error:
        return Batch("outputs", reason=str(error))
    return Batch("classes", as_classes(outputs, targets, dim))


def _plain(shape: torch.Size) -> tuple[int, ...]:
    """A shape without axes of one number beside the batch."""
    return (*shape[:1], *(size for size in shape[1:] if size != 1))


class Scoring:
    """Members' outputs and what they are held against, batch by batch.

    Args:
        members: How many members.
        dim: The axis of the classes in ``(batch, ...)``; None: the labels tell.

    Attributes:
        reason: Why there are no figures of how good members are, though there are targets; empty: there are some, or none.
    """

    def __init__(self, members: int, dim: int | None) -> None:
        self.members, self.dim, self.reason = members, dim, ""
        self.kind: str | None = None
        self.classes: ClassTally | None = None
        self.numbers = NumberTally(members)
        self.low, self.high = float("inf"), float("-inf")

    def add(self, outputs: Tensor, targets: Any) -> Batch:
        """Add outputs ``(S, batch, ...)`` and what they should be.

        Returns:
            What the batch says of them.

        Raises:
            TypeError: If labels are no integers.
            ValueError: If a label is no class, or some batches have labels and others have not.
        """
        batch = Batch("outputs") if self.reason else held(outputs, targets, self.dim)
        self.reason = self.reason or batch.reason
        self.kind = self._joined(batch)
        if batch.classes is not None and self.kind in ("classes", "two"):
            predictions, labels = batch.classes
            self.classes = self.classes or ClassTally(self.members, predictions.shape[2], predictions.device)
            self.classes.add(predictions, labels)
            self.low, self.high = min(self.low, float(outputs.min())), max(self.high, float(outputs.max()))
        if batch.kind != "classes":
            self.numbers.add(*(batch.numbers or (outputs.flatten(1), None)))
        return batch

    def found(self) -> tuple[str, ClassTally | NumberTally]:
        """``"classes"``, ``"numbers"`` or ``"outputs"``, and the tally of them.

        Raises:
            ValueError: If there was no batch, or no label is that of a class.
        """
        if self.kind is None:
            raise ValueError("the loader is empty: there is nothing to measure on")
        if self.kind == "two" and self.low >= 0 and self.high <= 1:
            self.kind, self.numbers.right = "outputs", False
            self.reason = "one output in 0 to 1, for labels of 0 and 1, may be a logit or a probability"
        if self.kind in ("classes", "two") and self.classes is not None:
            if not self.classes.count:
                raise ValueError("the loader has no labels but -100, which count for nothing")
            return "classes", self.classes
        return self.kind, self.numbers

    def _joined(self, batch: Batch) -> str:
        """The kind of all batches so far."""
        kinds = {batch.kind, self.kind or batch.kind}
        if len(kinds) == 1:
            return batch.kind
        if kinds == {"two", "numbers"}:
            return "numbers"
        if self.reason and "classes" not in kinds:
            return "outputs"
        told = f": {self.reason}" if self.reason else "; give all of them one kind of labels"
        raise ValueError(f"some batches of the loader have labels and some do not{told}")
