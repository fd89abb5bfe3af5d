"""Arguments of a call for many networks: where the batch lies in them, and how it is dealt out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

ENTRIES = -1
"""In place of an axis: the batch are the entries of a list."""


class Arguments:
    """The arguments of one call, for many networks.

    Args:
        args: Positional arguments, any pytree.
        kwargs: Keyword arguments, any pytree.
        networks: Deal the batch out to that many networks at most, in contiguous parts whose sizes differ by at most one;
            None: all networks get everything.
        smallest: Examples that a network needs at least; in a small batch, fewer networks get a part.
        axes: For every leaf the axis along which the batch lies in it, `ENTRIES` for a list of examples, None if it does not;
            by default as `usual_axes` says.
        lists: Whether lists among the arguments are leaves, whose entries are examples.

    Attributes:
        leaves: The leaves of the pytree.
        tensors: The tensors in them.
        sizes: The sizes of the networks' parts; None: all get everything.
        only: The one network that is to run; None: all.
        said: The leaves, by their place, of which the user says where the batch lies.
    """

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        networks: int | None = None,
        smallest: int = 1,
        axes: Sequence[int | None] | None = None,
        lists: bool = False,
    ) -> None:
        whole = {id(one) for one in (*args, *kwargs.values()) if type(one) is list} if lists else set()
        leaves, self._spec = tree_flatten((args, kwargs), is_leaf=lambda one: id(one) in whole)
        self.sizes: list[int] | None = None
        self.only: int | None = None
        self.said: frozenset[int] = frozenset()
        self._lists = lists
        self._flat = (
            not kwargs and len(leaves) == len(args) and all(one is other for one, other in zip(leaves, args, strict=True))
        )
        if axes is not None:
            self.axes = list(axes)
        self._set(leaves)
        if networks is not None:
            self._deal(networks, smallest)

    def _set(self, leaves: list[Any]) -> None:
        self.leaves = leaves
        self.tensors = [leaf for leaf in (tree_leaves(leaves) if self._lists else leaves) if isinstance(leaf, Tensor)]
        if self.sizes is not None:
            sizes, pairs = self.sizes, zip(leaves, self.axes, strict=True)
            self._parts = [None if axis is None else _split(leaf, axis, sizes) for leaf, axis in pairs]

    @cached_property
    def axes(self) -> list[int | None]:
        """For every leaf where the batch lies in it."""
        return usual_axes(self.leaves)

    @cached_property
    def batch(self) -> int:
        """The size of the batch; 0 if there is none."""
        pairs = zip(self.leaves, self.axes, strict=True)
        return next((_size(leaf, axis) for leaf, axis in pairs if axis is not None), 0)

    def head(self, count: int) -> Arguments:
        """The first examples of the batch, shared by all networks, detached."""
        pairs = zip(self.leaves, self.axes, strict=True)
        size = min(count, self.batch)
        return self._whole([leaf if axis is None else _split(leaf, axis, [size, _size(leaf, axis) - size])[0]
                            for leaf, axis in pairs]).map(torch.detach)  # fmt: skip

    def _whole(self, leaves: list[Any]) -> Arguments:
        """Such leaves as one call for all networks."""
        return Arguments(*self.restore(leaves), axes=self.axes, lists=self._lists)

    @property
    def holds_lists(self) -> bool:
        """Whether lists are leaves, whose entries may be examples."""
        return self._lists

    @property
    def bytes(self) -> int:
        """How much memory the tensors take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    @property
    def even(self) -> bool:
        """Whether every network gets equally much, of tensors."""
        return self.sizes is None or (len(set(self.sizes)) == 1 and ENTRIES not in self.axes)

    @property
    def parts(self) -> int | None:
        """How many networks run on a part; None: all get everything."""
        if self.only is not None:
            return 1
        return None if self.sizes is None else len(self.sizes)

    def of(self, index: int, change: Callable[[Any], Any] | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of one network, every leaf changed."""
        leaves = self.leaves
        if self.sizes is not None:
            leaves = [leaf if parts is None else parts[index] for leaf, parts in zip(leaves, self._parts, strict=True)]
        if change is not None:
            leaves = [tree_map(change, leaf) if type(leaf) is list else change(leaf) for leaf in leaves]
        return self.restore(leaves)

    def restore(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put leaves back into the structure of the call."""
        if self._flat:
            return tuple(leaves), {}
        args, kwargs = tree_unflatten(list(leaves), self._spec)
        return args, kwargs

    @property
    def mapped(self) -> list[int | None]:
        """For every leaf of `stacked` the axis of the networks, None where all share it."""
        return [None] * len(self.leaves) if self.sizes is None else [None if axis is None else 0 for axis in self.axes]

    def stacked(self) -> list[Any]:
        """The leaves, with a leading axis of networks where they are dealt; only if `even`."""
        if self.sizes is None:
            return self.leaves
        shape = (len(self.sizes), self.sizes[0])
        pairs = zip(self.leaves, self.axes, strict=True)
        return [leaf if axis is None else leaf.unflatten(axis, shape).movedim(axis, 0) for leaf, axis in pairs]

    def dealt(self, networks: int, smallest: int, axes: list[int | None]) -> Arguments:
        """The same call dealt out, the batch along these axes."""
        other = copy.copy(self)
        vars(other).pop("batch", None)
        other.axes = axes
        other._deal(networks, smallest)
        return other

    def differing(self) -> list[int]:
        """The places of the leaves that have another size where the batch should lie."""
        sizes = [None if axis is None else _size(leaf, axis) for leaf, axis in zip(self.leaves, self.axes, strict=True)]
        return [place for place, size in enumerate(sizes) if size not in (None, self.batch)]

    def _deal(self, networks: int, smallest: int) -> None:
        if networks > 1 and self.batch > 0:
            parts = max(1, min(networks, self.batch // smallest))
            self.sizes = [self.batch // parts + (index < self.batch % parts) for index in range(parts)]
            self._set(self.leaves)

    def detached(self) -> Arguments:
        """The same call, dealt out as before, without gradients, in memory of its own."""
        return self.changed(_detached)

    def changed(self, change: Callable[[Any], Any]) -> Arguments:
        """The same call, dealt out as before, with every leaf changed, in other memory but of the same shape."""
        other = copy.copy(self)
        other._set([tree_map(change, leaf) if type(leaf) is list else change(leaf) for leaf in self.leaves])
        return other

    def alone(self, index: int = 0) -> Arguments:
        """The same call, for one network alone."""
        other = copy.copy(self)
        other.only = index
        return other

    def map(self, change: Callable[[Tensor], Tensor]) -> Arguments:
        """The same call with every tensor changed."""

        def changed(leaf: Any) -> Any:
            return change(leaf) if isinstance(leaf, Tensor) else leaf

        return self._whole([tree_map(changed, leaf) if type(leaf) is list else changed(leaf) for leaf in self.leaves])

    def kinds(self) -> tuple[Any, ...]:
        """What tells one kind of call from another: all but the sizes of tensors."""
        return ("flat" if self._flat else str(self._spec), *(_kind(leaf) for leaf in self.leaves))

    def names(self, parameters: Sequence[str]) -> list[str]:
        """For every leaf the name of the argument that it belongs to."""
        args, kwargs = self.restore(list(range(len(self.leaves))))
        named = [*zip([*parameters, *(str(index) for index in range(len(parameters), len(args)))], args, strict=False)]
        found = [""] * len(self.leaves)
        for name, one in [*named, *kwargs.items()]:
            for index in tree_leaves(one):
                found[index] = name
        return found


def _detached(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _size(leaf: Any, axis: int) -> int:
    return len(leaf) if axis == ENTRIES else int(leaf.shape[axis])


def _split(leaf: Any, axis: int, sizes: Sequence[int]) -> Sequence[Any]:
    if axis != ENTRIES:
        return leaf.split(list(sizes), dim=axis)  # type: ignore[no-any-return]
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return [leaf[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return (leaf.dtype, leaf.ndim, leaf.ndim > 0 and leaf.shape[0] == 1)
    if type(leaf) is list:
        return ("list", *{_kind(one) if isinstance(one, Tensor) else type(one) for one in tree_leaves(leaf[:1])})
    return leaf if isinstance(leaf, (type(None), bool, int, float, str)) else type(leaf)


def usual_axes(leaves: Sequence[Any], axis: int = 0, given: Mapping[int, int | None] | None = None) -> list[int | None]:
    """Where the batch lies: along one axis of the first tensor that has more than one entry there, and of all of that size.

    One of three or more axes may have it along its second axis too, as the state of a recurrent layer has.

    Args:
        leaves: The leaves of the arguments.
        axis: The axis.
        given: For some leaves, by their place, what the user says.

    Returns:
        For every leaf the axis, `ENTRIES` for lists of examples, or None.

    Raises:
        IndexError: If a leaf has no axis that was given for it.
    """
    given = given or {}
    sizes = [_size(leaves[index], one) for index, one in given.items() if one is not None]
    sizes += [leaf.shape[axis] for index, leaf in enumerate(leaves)
              if index not in given and isinstance(leaf, Tensor) and leaf.ndim > axis]  # fmt: skip
    batch = next((size for size in sizes if size != 1), next(iter(sizes), 0))
    return [given[index] if index in given else _axis_of(leaf, batch, axis) for index, leaf in enumerate(leaves)]


def _axis_of(leaf: Any, batch: int, axis: int) -> int | None:
    if not isinstance(leaf, Tensor) or not batch:
        return None
    likely = (axis, 0) if axis else ((0, 1) if leaf.ndim > 2 else (0,))
    return next((one for one in likely if leaf.ndim > one and leaf.shape[one] == batch), None)
