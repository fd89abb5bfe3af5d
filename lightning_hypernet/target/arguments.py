"""Arguments of a call for many networks, and what becomes of their outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

Reduction = Literal["mean", "log_mean_prob", "majority", None]
_PLAIN = (type(None), bool, int, float, str)


class Arguments:
    """The arguments of one call, for many networks.

    Args:
        args: Positional arguments, any pytree.
        kwargs: Keyword arguments, any pytree.
        networks: Deal the batch out to that many networks at most, in contiguous parts whose sizes differ by at most one;
            None: all networks get everything. The batch size is that of the first tensor's first axis. Every tensor with that
            size along its first axis is dealt, one of three or more axes with that size along its second axis too (the state
            of a recurrent layer); the others are shared.
        smallest: Examples that a network needs at least; in a small batch, fewer networks get a part.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], networks: int | None = None, smallest: int = 1) -> None:
        leaves, self._spec = tree_flatten((args, kwargs))
        self.sizes: list[int] | None = None
        self._alone = False
        self.axes: list[int | None] = [None] * len(leaves)
        self._flat = (
            not kwargs and len(leaves) == len(args) and all(one is other for one, other in zip(leaves, args, strict=True))
        )
        self._set(leaves)
        self.batch = next((tensor.shape[0] for tensor in self.tensors if tensor.ndim), 0)
        if networks is not None and networks > 1 and self.batch > 0:
            parts = max(1, min(networks, self.batch // smallest))
            self.sizes = [self.batch // parts + (index < self.batch % parts) for index in range(parts)]
            self.axes = [_axis_of(leaf, self.batch) for leaf in self.leaves]
            self._set(leaves)

    def _set(self, leaves: list[Any]) -> None:
        self.leaves = leaves
        self.tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self._parts = [
            leaf.split(self.sizes, dim=axis) if axis is not None else None for leaf, axis in zip(leaves, self.axes, strict=True)
        ]

    def head(self, count: int) -> Arguments:
        """The first examples of the batch, shared by all networks, detached."""
        axes = [_axis_of(leaf, self.batch) for leaf in self.leaves]
        leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        pairs = zip(leaves, axes, strict=True)
        return Arguments(
            *self.restore([leaf if axis is None else leaf.narrow(axis, 0, min(count, self.batch)) for leaf, axis in pairs])
        )

    @property
    def bytes(self) -> int:
        """How much memory the tensors take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    @property
    def even(self) -> bool:
        """Whether every network gets equally much."""
        return self.sizes is None or len(set(self.sizes)) == 1

    @property
    def parts(self) -> int | None:
        """How many networks get a part; None: all get everything."""
        if self._alone:
            return 1
        return None if self.sizes is None else len(self.sizes)

    def of(self, index: int, change: Callable[[Any], Any] | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of one network, every leaf changed."""
        leaves = self.leaves
        if self.sizes is not None:
            leaves = [leaf if parts is None else parts[index] for leaf, parts in zip(leaves, self._parts, strict=True)]
        return self.restore(leaves if change is None else [change(leaf) for leaf in leaves])

    def restore(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put leaves back into the structure of the call."""
        if self._flat:
            return tuple(leaves), {}
        args, kwargs = tree_unflatten(list(leaves), self._spec)
        return args, kwargs

    def stacked(self) -> list[Any]:
        """The leaves, with a leading axis of networks where they are dealt; only if `even`."""
        if self.sizes is None:
            return self.leaves
        shape = (len(self.sizes), self.sizes[0])
        pairs = zip(self.leaves, self.axes, strict=True)
        return [leaf if axis is None else leaf.unflatten(axis, shape).movedim(axis, 0) for leaf, axis in pairs]

    def join(self, outputs: Sequence[Any], again: Callable[[Arguments], Any]) -> Any:
        """One output in the order of the inputs, from those of the networks.

        A tensor is joined along the axis whose length is the size of the network's part, or along its first axis if that is a
        multiple. What has no such axis, a scalar for one, is averaged, weighted by the sizes of the parts.

        Args:
            outputs: The output of every network.
            again: Runs the first network on other arguments; asked where more than one axis fits.

        Returns:
            The same pytree.
        """
        if len(outputs) == 1:
            return outputs[0]
        sizes = self.sizes or [1] * len(outputs)
        more: list[Tensor] = []

        def merge(index: int, leaves: Sequence[Tensor]) -> Tensor:
            axes = _batch_axes(leaves, sizes) if self.sizes else []
            if len(axes) > 1:
                if not more:
                    more.extend(tree_flatten(again(self.head(sizes[0] + 1)))[0])
                axes = [axis for axis in axes if more[index].shape[axis] != leaves[0].shape[axis]]
            return torch.cat(list(leaves), dim=axes[0]) if axes else _average(leaves, sizes)

        return _merge(outputs, merge)

    def detached(self) -> Arguments:
        """The same call, dealt out as before, without gradients, in memory of its own."""
        other = copy.copy(self)
        other._set([leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in self.leaves])
        return other

    def alone(self) -> Arguments:
        """The same call, for the first network alone."""
        other = copy.copy(self)
        other._alone = True
        return other

    def map(self, change: Callable[[Tensor], Tensor]) -> Arguments:
        """The same call with every tensor changed."""
        return Arguments(*self.restore([change(leaf) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]))


def _axis_of(leaf: Any, batch: int) -> int | None:
    if not isinstance(leaf, Tensor) or leaf.ndim == 0:
        return None
    if leaf.shape[0] == batch:
        return 0
    return 1 if leaf.ndim > 2 and leaf.shape[1] == batch else None


def _batch_axes(leaves: Sequence[Tensor], sizes: Sequence[int]) -> list[int]:
    """The axes along which outputs may hold their part of the batch."""
    shapes = [leaf.shape for leaf in leaves]
    axes = [
        axis for axis in range(leaves[0].ndim) if all(shape[axis] == size for shape, size in zip(shapes, sizes, strict=True))
    ]
    factor = shapes[0][0] // sizes[0] if shapes[0] else 0
    if factor > 1 and all(shape[0] == factor * size for shape, size in zip(shapes, sizes, strict=True)):
        axes.append(0)
    return axes


def _average(leaves: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    if not leaves[0].is_floating_point():
        return leaves[0]
    shares = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    stacked = torch.stack(list(leaves))
    return (shares.to(stacked).view(-1, *(1,) * (stacked.ndim - 1)) * stacked).sum(0)


def stack(outputs: Sequence[Any]) -> Any:
    """Stack the outputs of networks that saw the same inputs: every tensor gets a leading axis ``(S, ...)``."""
    return _merge(outputs, lambda _, leaves: torch.stack(list(leaves)))


def reduce_outputs(outputs: Any, reduce: Reduction) -> Any:
    """Join the outputs of networks that saw the same inputs.

    Args:
        outputs: Any pytree of tensors ``(S, ...)``.
        reduce: ``"mean"``; ``"log_mean_prob"``, the log of the mean probability where outputs are logits over the last axis;
            ``"majority"``, the share of networks that vote for each class of the last axis; None leaves the outputs as they
            are. Integers are joined by majority always.

    Returns:
        The same pytree, of tensors ``(...)`` unless `reduce` is None.

    Raises:
        ValueError: If there is no such way to join them.
    """
    if reduce not in get_args(Reduction):
        raise ValueError(f"reduce must be one of {get_args(Reduction)}, not {reduce!r}")
    if reduce is None:
        return outputs
    return tree_map(lambda leaf: _reduce_leaf(leaf, reduce) if isinstance(leaf, Tensor) else leaf, outputs)


def _reduce_leaf(leaf: Tensor, reduce: str) -> Tensor:
    if not leaf.is_floating_point():
        return leaf.mode(0).values
    if reduce == "mean" or leaf.ndim == 1:
        return leaf.mean(0)
    if reduce == "majority":
        return F.one_hot(leaf.argmax(-1), leaf.shape[-1]).to(leaf.dtype).mean(0)
    return leaf.log_softmax(-1).logsumexp(0) - math.log(len(leaf))


def _merge(outputs: Sequence[Any], merge: Callable[[int, Sequence[Tensor]], Tensor]) -> Any:
    """Merge the outputs of networks leaf by leaf; what is no tensor is taken from the first."""
    flat = [tree_flatten(output) for output in outputs]
    columns = list(zip(*(leaves for leaves, _ in flat), strict=True))
    opaque = {type(column[0]).__name__ for column in columns if not isinstance(column[0], (Tensor, *_PLAIN))}
    if opaque:
        raise TypeError(
            f"the target returns {', '.join(opaque)}, whose tensors can't be joined; return tensors, tuples or dicts, or "
            "register the class with torch.utils._pytree.register_pytree_node"
        )
    merged = [merge(index, column) if isinstance(column[0], Tensor) else column[0] for index, column in enumerate(columns)]
    return tree_unflatten(merged, flat[0][1])
