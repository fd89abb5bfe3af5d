"""Reading: what the outputs of members mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_hypernet.target.reduction import Reduction, check_reduction
from lightning_hypernet.values import choice, number, real, whole

TASKS = ("classification", "regression")
VARIANCES = ("log_variance", "variance", "log_std", "std", "softplus")
"""What the second half of a regression's outputs is; ``"softplus"``: the variance is its softplus."""


@dataclass(frozen=True)
class Reading:
    """What the outputs of members mean.

    Args:
        task: ``"classification"``: logits, or probabilities that sum to 1; ``"regression"``: numbers.
        variance: Of a regression: what the second half of the outputs is, one of `VARIANCES`; a number: the variance of the
            noise; None: the outputs are means alone.
        dim: The axis of the classes, or of the two halves, in ``(batch, ...)``.
    """

    task: str
    variance: str | float | None
    dim: int

    def log_members(self, outputs: Any) -> Tensor:
        """The log probabilities of members, ``(members, batch, ..., classes)``, of outputs ``(members, batch, ...)``.

        Outputs without an axis of classes, or with one logit there, are logits of the second of two classes.

        Raises:
            TypeError: If the outputs are no tensor of real numbers.
            ValueError: If the axis holds no classes, or the outputs are NaN or minus infinity for all of them.
        """
        given = _checked(outputs, "logits")
        dtype, outputs = outputs.dtype, given
        if outputs.ndim == 2:
            logits = outputs[..., None]
        else:
            if not -outputs.ndim + 1 < self.dim < outputs.ndim - 1 or self.dim % (outputs.ndim - 1) == 0:
                raise ValueError(f"dim={self.dim} names no axis of classes in outputs {tuple(outputs.shape[1:])}")
            logits = outputs.movedim(self.dim if self.dim < 0 else self.dim + 1, -1)
        if logits.shape[-1] == 1:
            logs = torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], -1)
        else:
            logs = logits.log() if are_probabilities(logits, dtype) else logits.log_softmax(-1)
        if logs.isnan().any():
            raise ValueError("the members' outputs hold examples whose logits are all minus infinity")
        return logs

    def numbers(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """Means and variances of members, each ``(members, batch, ...)``, of outputs ``(members, batch, ...)`` or two of them.

        Raises:
            TypeError: If the outputs are no tensors of real numbers.
            ValueError: If they do not fall into two halves, are NaN, or a variance is not positive.
        """
        if self.variance is None or isinstance(self.variance, float):
            means = _checked(outputs, "means")
            return means, torch.full_like(means, self.variance or 0.0)
        first, second = self._halves(outputs)
        variances = {
            "log_variance": lambda: second.exp(),
            "variance": lambda: second,
            "log_std": lambda: (2 * second).exp(),
            "std": lambda: second.square(),
            "softplus": lambda: F.softplus(second),
        }[self.variance]()
        positive = second if self.variance == "std" else variances
        if not bool(((positive > 0) & variances.isfinite()).all()):
            raise ValueError(
                f"read as variance={self.variance!r}, the outputs hold variances that are not positive and finite: name what "
                f"the second half is, one of {', '.join(VARIANCES)}"
            )
        return first, variances

    def _halves(self, outputs: Any) -> tuple[Tensor, Tensor]:
        pair = outputs
        if isinstance(outputs, Mapping) and len(outputs) == 2 and "mean" in outputs:
            other = next(key for key in outputs if key != "mean")
            if other in VARIANCES and other != self.variance:
                raise ValueError(
                    f"the outputs are a mean and a {other}, and variance={self.variance!r} was passed: pass {other!r}"
                )
            pair = (outputs["mean"], outputs[other])
        if isinstance(pair, (tuple, list)) and len(pair) == 2:
            first, second = (_checked(one, "means and variances") for one in pair)
            if first.shape != second.shape:
                shapes = f"{tuple(first.shape[1:])} and {tuple(second.shape[1:])}"
                raise ValueError(f"means and variances must be of one shape, not {shapes}")
            return first, second
        tensor = _checked(outputs, "means and variances")
        axis = self.dim if self.dim < 0 else self.dim + 1
        if not -tensor.ndim + 1 < axis < tensor.ndim or axis % tensor.ndim < 2 or tensor.shape[axis] % 2:
            raise ValueError(
                f"outputs {tuple(tensor.shape[1:])} do not fall into means and variances along dim={self.dim}: pass "
                "variance=None for means alone, or a number, the variance of the noise"
            )
        first, second = tensor.chunk(2, axis)
        return first, second


def read(task: Any, variance: Any, dim: Any, reduce: Reduction) -> Reading:
    """What a user says of outputs, with the ensemble's way of joining them.

    Raises:
        ValueError: If something is none of what it may be.
    """
    name, named = check_reduction(reduce)
    task = choice("task", task, TASKS)
    axis = named if dim is None else whole("dim", dim, None)
    axis = 1 if axis is None else axis
    if task == "classification":
        if variance is not None:
            raise ValueError(f"variance is of task='regression', and the task is {task!r}: leave it None")
        return Reading(task, None, axis)
    if name in ("log_mean_prob", "majority"):
        raise ValueError(f"the ensemble joins class probabilities, reduce={name!r}, and the task is {task!r}; take 'mean'")
    if isinstance(variance, str) and isinstance(number(variance), str):
        choice("variance", variance, VARIANCES)
    elif variance is not None:
        variance = real("variance", variance, 0, above=True)
    return Reading(task, variance, axis)


def clear(reading: Reading, outputs: Any, task: bool, axis: bool) -> None:
    """See that outputs mean what they are read as, where nobody said so.

    Args:
        reading: The reading.
        outputs: The outputs of members.
        task: Whether the user named a task, or a reduction of probabilities.
        axis: Whether the user named the axis.

    Raises:
        ValueError: If they may mean something else.
    """
    if not isinstance(outputs, Tensor):
        return
    shape = tuple(outputs.shape[1:])
    if not task and (outputs.ndim == 2 or (outputs.ndim > 2 and outputs.shape[2] == 1)):
        raise ValueError(
            f"outputs {shape} may be logits of one of two classes, or numbers: pass task='classification' or task='regression'"
        )
    halved = reading.task == "regression" and isinstance(reading.variance, str)
    if not axis and outputs.ndim == 4 and (halved or reading.task == "classification"):
        held = "means and variances" if halved else "the classes"
        raise ValueError(f"it is not clear which axis of outputs {shape} holds {held}: pass dim=1 or dim=-1")


def _checked(outputs: Any, what: str) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise TypeError(f"the members' outputs must be a tensor of {what}, not a {type(outputs).__name__}")
    if not outputs.is_floating_point():
        raise TypeError(f"the members' outputs must be {what}, real numbers, not {outputs.dtype}")
    if outputs.ndim < 2 or not outputs.numel():
        raise ValueError(f"the members' outputs must be {what} (batch, ...), not {tuple(outputs.shape[1:])}")
    if outputs.isnan().any() or outputs.isposinf().any():
        raise ValueError("the members' outputs hold NaN or infinite numbers: check the inputs, and the weights")
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def are_probabilities(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether all numbers lie in 0 to 1 and sum to 1 over the last axis, as far as the type they were given in can tell.

    Raises:
        ValueError: If most of them do and some do not, as padding among probabilities.
    """
    if bool(values.min() < 0) or bool(values.max() > 1):
        return False
    even = (values.sum(-1) - 1).abs() < max(1e-5, 4 * torch.finfo(dtype).eps)
    if not even.all() and even.double().mean() > 0.5:
        raise ValueError(
            f"outputs lie in 0 to 1, and of {even.numel()} predictions {int((~even).sum())} do not sum to 1, so that they "
            "are neither probabilities nor clearly logits: leave those out, or give logits"
        )
    return bool(even.all())
