"""Arguments of a call for many networks, and what becomes of their outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

Reduction = Literal["mean", "log_mean_prob", "majority", None]


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
        self.leaves, self._spec = tree_flatten((args, kwargs))
        self.tensors = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
        self.sizes: list[int] | None = None
        self.axes: list[int | None] = [None] * len(self.leaves)
        self.batch = next((tensor.shape[0] for tensor in self.tensors if tensor.ndim), 0)
        if networks is not None and networks > 1 and self.batch > 0:
            parts = max(1, min(networks, self.batch // smallest))
            self.sizes = [self.batch // parts + (index < self.batch % parts) for index in range(parts)]
            self.axes = [_axis_of(leaf, self.batch) for leaf in self.leaves]
            self._parts = [
                leaf.split(self.sizes, dim=axis) if axis is not None else None
                for leaf, axis in zip(self.leaves, self.axes, strict=True)
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
    def even(self) -> bool:
        """Whether every network gets equally much."""
        return self.sizes is None or len(set(self.sizes)) == 1

    def of(self, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of one network."""
        if self.sizes is None:
            return self.restore(self.leaves)
        pairs = zip(self.leaves, self._parts, strict=True)
        return self.restore([leaf if parts is None else parts[index] for leaf, parts in pairs])

    def restore(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put leaves back into the structure of the call."""
        args, kwargs = tree_unflatten(list(leaves), self._spec)
        return args, kwargs

    def stacked(self) -> list[Any]:
        """The leaves, with a leading axis of networks where they are dealt; only if `even`."""
        if self.sizes is None:
            return self.leaves
        shape = (len(self.sizes), self.sizes[0])
        pairs = zip(self.leaves, self.axes, strict=True)
        return [leaf if axis is None else leaf.unflatten(axis, shape).movedim(axis, 0) for leaf, axis in pairs]

    def join(self, outputs: Sequence[Any]) -> Any:
        """One output in the order of the inputs, from those of the networks.

        A tensor is joined along its first axis if that has the size of the network's part or a multiple, else along the first
        axis of exactly that size. What has no such axis, a scalar for one, is averaged, weighted by the sizes of the parts.
        """
        if self.sizes is None or len(outputs) == 1:
            return outputs[0]
        return _merge(outputs, lambda leaves: _join_leaves(leaves, self.sizes or []))


def _axis_of(leaf: Any, batch: int) -> int | None:
    if not isinstance(leaf, Tensor) or leaf.ndim == 0:
        return None
    if leaf.shape[0] == batch:
        return 0
    return 1 if leaf.ndim > 2 and leaf.shape[1] == batch else None


def _join_leaves(leaves: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    shape, size = leaves[0].shape, sizes[0]
    exact = [axis for axis, length in enumerate(shape) if length == size]
    if shape and (0 in exact or (not exact and shape[0] % size == 0)):
        return torch.cat(list(leaves))
    if exact:
        return torch.cat(list(leaves), dim=exact[0])
    if not leaves[0].is_floating_point():
        return leaves[0]
    shares = torch.tensor(sizes, device=leaves[0].device) / sum(sizes)
    stacked = torch.stack(list(leaves))
    return (shares.to(stacked.dtype).view(-1, *(1,) * len(shape)) * stacked).sum(0)


def stack(outputs: Sequence[Any]) -> Any:
    """Stack the outputs of networks that saw the same inputs: every tensor gets a leading axis ``(S, ...)``."""
    return _merge(outputs, lambda leaves: torch.stack(list(leaves)))


def reduce_outputs(outputs: Any, reduce: Reduction) -> Any:
    """Join the outputs of networks that saw the same inputs.

    Args:
        outputs: Any pytree of tensors ``(S, ...)``.
        reduce: ``"mean"``; ``"log_mean_prob"``, the log of the mean probability where outputs are logits over the last axis;
            ``"majority"``, the share of networks that vote for each class of the last axis; None leaves the outputs as they
            are. Integers are joined by majority always.

    Returns:
        The same pytree, of tensors ``(...)`` unless `reduce` is None.
    """
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


def _merge(outputs: Sequence[Any], merge: Callable[[Sequence[Tensor]], Tensor]) -> Any:
    flat = [tree_flatten(output) for output in outputs]
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    return tree_unflatten([merge(column) if isinstance(column[0], Tensor) else column[0] for column in columns], flat[0][1])


def inputs_of(batches: Iterable[Any], device: torch.device) -> Iterator[Arguments]:
    """The inputs of batches as arguments: a batch is its inputs, or a tuple or list that begins with them."""
    for batch in batches:
        if isinstance(batch, Arguments):
            yield batch
        else:
            yield Arguments(((batch[0] if isinstance(batch, (tuple, list)) else batch).to(device),), {})
