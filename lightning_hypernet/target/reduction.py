"""Reduction: how evaluation joins what its members say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from lightning_hypernet.target.joining import PerNetwork
from lightning_hypernet.values import guess, number

Reduction = str | Mapping[str, Any] | None
"""``"mean"``, ``"log_mean_prob"``, ``"majority"`` or None; or a mapping with the ``name`` and ``dim``, the axis of classes."""
_DIFFERENT = (
    "the members return outputs whose shapes may differ, as detections do, which can't be joined; reduce=None gives what each "
    "of them returns"
)
REDUCTIONS = ("mean", "log_mean_prob", "majority", None)


def check_reduction(reduce: Any) -> tuple[str | None, int | None]:
    """The name of a reduction and the axis of the classes, None where none is named.

    Raises:
        ValueError: If there is no such reduction.
    """
    options = dict(reduce) if isinstance(reduce, Mapping) else {"name": reduce}
    name, dim = options.pop("name", None), options.pop("dim", None)
    named = not isinstance(reduce, Mapping) or "name" in reduce
    dim = number(dim)
    known = named and isinstance(name, (str, type(None))) and name in REDUCTIONS
    if not known or options or not (dim is None or (isinstance(dim, int) and not isinstance(dim, bool))):
        near = "".join(guess(option, ("name", "dim")) for option in options) or guess(name, REDUCTIONS)
        raise ValueError(f"reduce must be one of {REDUCTIONS}, or a mapping with such a name and dim, not {reduce!r}{near}")
    return name, dim


def read_reduction(reduce: Any) -> Reduction:
    """A reduction, its axis as a number; errors as in `check_reduction`."""
    _, dim = check_reduction(reduce)
    return {**reduce, "dim": dim} if isinstance(reduce, Mapping) and "dim" in reduce else reduce


def reduce_outputs(outputs: Any, reduce: Reduction, inputs: Sequence[Any] = ()) -> Any:
    """Join the outputs of networks that saw the same inputs.

    Args:
        outputs: Any pytree of tensors ``(S, ...)``.
        reduce: ``"mean"``; ``"log_mean_prob"``, the log of the mean probability of logits: of classes, or, where there is one
            logit, of its sigmoid, as a logit again; ``"majority"``, the share of networks that vote for each class, or for the
            one; None leaves the outputs as they are. Classes lie along axis 1 of ``(batch, classes)`` and of maps
            ``(batch, classes, height, width)``; a mapping with ``name`` and ``dim`` says so otherwise. Integers are joined by
            majority always.
        inputs: The arguments of the networks, to tell detections: a list of mappings, one for each entry of a list of images.

    Returns:
        The same pytree, of tensors ``(...)`` unless `reduce` is None.

    Raises:
        ValueError: If there is no such way to join them.
    """
    name, dim = check_reduction(reduce)
    if name is None:
        return outputs

    examples = {len(one) for one in inputs if type(one) is list}
    if type(outputs) is list and len(outputs) in examples and all(isinstance(one, Mapping) for one in outputs):
        raise ValueError(_DIFFERENT)

    def one(leaf: Any) -> Any:
        if isinstance(leaf, PerNetwork):
            raise ValueError(_DIFFERENT)
        return _reduce_leaf(leaf, name, dim) if isinstance(leaf, Tensor) else leaf

    return tree_map(one, outputs, is_leaf=lambda leaf: isinstance(leaf, PerNetwork))


def _reduce_leaf(leaf: Tensor, name: str, dim: int | None) -> Tensor:
    if not (leaf.is_floating_point() or leaf.is_complex()):
        return leaf.mode(0).values
    if name == "mean" or leaf.ndim == 1:
        return leaf.mean(0)
    if leaf.is_complex():
        raise ValueError(f"reduce={name!r} joins logits, which are real; complex outputs are joined by 'mean'")
    return joint(leaf, name, dim)


def joint(logits: Tensor, name: str, dim: int | None) -> Tensor:
    """The log mean probability, or the votes, of logits ``(S, batch, ...)``.

    Raises:
        ValueError: If it is not clear which axis holds the classes.
    """
    binary, axis = logits.ndim == 2, 1
    if not binary:
        axis = _class_axis(logits, name, dim)
        binary = logits.shape[axis] == 1
    if name == "majority":
        if binary:
            return (logits > 0).to(logits.dtype).mean(0)
        return F.one_hot(logits.argmax(axis), logits.shape[axis]).movedim(-1, axis).to(logits.dtype).mean(0)
    if binary:
        return torch.logsumexp(F.logsigmoid(logits), 0) - torch.logsumexp(F.logsigmoid(-logits), 0)
    return logits.log_softmax(axis).logsumexp(0) - math.log(len(logits))


def _class_axis(logits: Tensor, name: str, dim: int | None) -> int:
    """The axis of the classes in ``(S, batch, ...)``, from that in ``(batch, ...)``."""
    if dim is None and logits.ndim == 4:
        raise ValueError(
            f"reduce={name!r} can't tell which axis of outputs {tuple(logits.shape[1:])} holds the classes: name it, as in "
            f"reduce={{'name': {name!r}, 'dim': -1}}"
        )
    count = logits.ndim - 1
    wanted = 1 if dim is None else dim
    if not -count <= wanted < count or wanted % count == 0:
        raise ValueError(f"reduce has dim={wanted}, and outputs {tuple(logits.shape[1:])} have no classes there")
    return wanted % count + 1


def refuse_regression(name: str | None, outputs: Tensor, targets: Tensor, what: str) -> None:
    """See that what is to be joined as logits is no regression: targets are classes, or probabilities of the outputs' shape.

    Args:
        name: The reduction.
        outputs: Outputs ``(batch, ...)``.
        targets: What they should be.
        what: Who asks, in words.

    Raises:
        ValueError: If the targets are other real numbers, or several labels for each example.
    """
    if name in (None, "mean") or not targets.is_floating_point() or not len(targets):
        return
    lies = bool(((targets >= 0) & (targets <= 1)).all())
    one = outputs.ndim == 1 or outputs.shape[1:].numel() == 1
    several = targets.shape == outputs.shape and outputs.ndim > 1 and not one
    if lies and (one or not several or bool((targets.sum(1) - 1).abs().max() < 1e-3)):
        return
    kind = "several labels each" if lies else "real numbers"
    raise ValueError(f"{what} {name!r} joins class probabilities, and the targets are {kind}; take 'mean'")
