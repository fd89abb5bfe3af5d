"""Batches: the batch of a training step, dealt out to networks before the step sees it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from lightning_hypernet.target.layout import BatchDim

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def parts_of(batch: Any, networks: int, smallest: int = 1, batch_dim: BatchDim = None) -> list[tuple[Any, int]]:
    """Deal a batch out.

    The size of the batch is one that all its tensors have, along their first or second axis, or all its lists of examples. What
    does not have it goes to every network. Graphs of torch_geometric and packed sequences go through their own lists.

    Args:
        batch: Any nested structure.
        networks: How many parts at most.
        smallest: Examples in a part at least.
        batch_dim: The axis along which the batch lies, if it is not the first; or by key, where the batch is a mapping.

    Returns:
        The parts, and how many examples each has.

    Raises:
        TypeError: If the batch holds something that can't be dealt out.
        ValueError: If there is nothing to deal out.
    """
    axis = batch_dim if isinstance(batch_dim, int) else 0
    by_name = batch_dim if isinstance(batch_dim, Mapping) and isinstance(batch, Mapping) else {}
    size = next((_said_size(batch[key], said) for key, said in by_name.items() if key in batch and said is not None), 0)
    size = size or _size_of(batch, axis)
    count = max(1, min(networks, size // smallest))
    sizes = [size // count + (index < size % count) for index in range(count)]
    ends = [sum(sizes[: index + 1]) for index in range(count)]
    tables = [one for one in _nodes(batch) if isinstance(one, Tensor) and one.ndim > 1]
    first = any(one.shape[0] == size for one in tables)
    pieces = _Pieces(size, axis, [slice(end - one, end) for one, end in zip(sizes, ends, strict=True)], by_name, first)
    return list(zip(pieces.of(batch), sizes, strict=True))


class _Pieces:
    """Cuts everything that has the batch's size."""

    def __init__(self, size: int, axis: int, slices: Sequence[slice], by_name: Mapping[str, Any], first: bool) -> None:
        self.size, self.axis, self.slices, self.by_name, self.first = size, axis, slices, by_name, first

    def of(self, value: Any) -> list[Any]:
        """Every network's piece."""
        if isinstance(value, Tensor):
            axis = _axis(value, self.size, self.axis)
            if axis == 1 != self.axis and value.ndim == 2 and self.first:
                axis = None  # a table, as boxes of four numbers are in a batch of four
            return self._shared(value) if axis is None else self._cut(value, axis)
        if isinstance(value, np.ndarray):
            return self._entries(value) if value.ndim and len(value) == self.size else self._shared(value)
        if isinstance(value, PackedSequence):
            return [pack_sequence(one, enforce_sorted=False) for one in self._entries(unpack_sequence(value))]
        if hasattr(value, "to_data_list") and hasattr(type(value), "from_data_list"):
            return [type(value).from_data_list(one) for one in self._entries(value.to_data_list())]
        if isinstance(value, (list, tuple)) and len(value) == self.size and self._are_entries(value):
            return [type(value)(one) for one in self._entries(value)]
        if isinstance(value, Mapping):
            columns = [self._named(key, one) for key, one in value.items()]
            return [_mapping_like(value, row) for row in zip(*columns, strict=True)] if columns else self._shared(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return [type(value)(*row) for row in zip(*map(self.of, value), strict=True)]
        if isinstance(value, (list, tuple)):
            return [type(value)(row) for row in zip(*map(self.of, value), strict=True)] if value else self._shared(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [one.name for one in dataclasses.fields(value) if one.init]
            columns = [self.of(getattr(value, name)) for name in names]
            return [dataclasses.replace(value, **dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]
        return self._shared(value)

    def _are_entries(self, value: Sequence[Any]) -> bool:
        """Whether the entries of a list are the examples, and not batches that happen to be as many."""
        batches = all(isinstance(one, Tensor) and one.ndim and one.shape[0] == self.size and not _image(one) for one in value)
        return _are_examples(value) and not batches

    def _named(self, key: Any, value: Any) -> list[Any]:
        if key not in self.by_name:
            return self.of(value)
        said = self.by_name[key]
        if isinstance(said, int) and isinstance(value, Tensor):
            return self._cut(value, said)
        return self._entries(value) if said == "list" else self._shared(value)

    def _cut(self, value: Tensor, axis: int) -> list[Any]:
        pieces = [value.narrow(axis, one.start, one.stop - one.start) for one in self.slices]
        for piece in pieces:
            piece.dealt_along = axis  # type: ignore[attr-defined]  # for `Plans.check_part`
        return pieces

    def _entries(self, value: Any) -> list[Any]:
        return [value[one] for one in self.slices]

    def _shared(self, value: Any) -> list[Any]:
        return [value] * len(self.slices)


def _mapping_like(value: Mapping[Any, Any], row: Sequence[Any]) -> Any:
    if type(value) is dict:
        return dict(zip(value, row, strict=True))
    other: Any = copy.copy(value)  # with a copy of what it keeps beside, as a tokenizer's encodings do
    if hasattr(other, "data") and isinstance(other.data, dict):
        other.data = dict(other.data)
    for key, one in zip(value, row, strict=True):
        other[key] = one
    return other


def _axis(value: Tensor, size: int, axis: int) -> int | None:
    return next((one for one in (axis, 0, 1) if value.ndim > one and value.shape[one] == size), None)


def _are_examples(value: Sequence[Any]) -> bool:
    """Whether a list holds things of one kind: tensors of as many axes, mappings of the same keys, texts."""
    kinds = {_kind(one) for one in value}
    return len(kinds) == 1 and None not in kinds


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.dtype, value.ndim)
    if isinstance(value, Mapping):
        return ("mapping", *sorted(map(str, value)))
    if isinstance(value, (list, tuple)):
        return (type(value), len(value), *map(_kind, value))
    return type(value)


def _size_of(batch: Any, axis: int) -> int:
    """The size of the batch: the first of its sizes that all have, else the one that most have."""
    nodes = list(_nodes(batch))
    for one in nodes:
        if not _known(one) and _holds_tensors(vars(one) if hasattr(one, "__dict__") else None):
            raise TypeError(_remedy(f"the batch holds a {type(one).__name__}"))
    tensors = [one for one in nodes if isinstance(one, Tensor) and one.ndim]
    sizes = [len(one) for one in nodes if isinstance(one, (list, tuple)) and len(one) > 1 and _surely_examples(one)]
    sizes += [one.shape[where] for where in dict.fromkeys((axis, 0, 1)) for one in tensors[:1] if one.ndim > where]
    sizes += [one.shape[axis] for one in tensors[1:] if one.ndim > axis]
    sizes += [one for one in map(_length, nodes) if one]
    best = max(dict.fromkeys(sizes), key=lambda size: _covered(batch, size, axis), default=0)
    if not best:
        raise ValueError(_remedy("the batch holds nothing that could be dealt out"))
    return best


def _said_size(value: Any, said: int | str) -> int:
    return int(value.shape[said]) if isinstance(said, int) and isinstance(value, Tensor) else len(value)


def _known(value: Any) -> bool:
    """Whether there is a way of dealing something out."""
    graphs = hasattr(value, "to_data_list") and hasattr(type(value), "from_data_list")
    plain = isinstance(value, (Tensor, PackedSequence, np.ndarray, Mapping, list, tuple, type, *_PLAIN))
    return graphs or plain or dataclasses.is_dataclass(value)


def _holds_tensors(value: Any, depth: int = 4) -> bool:
    if isinstance(value, Tensor):
        return True
    if not depth or isinstance(value, (type, *_PLAIN)):
        return False
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    held = vars(value).values() if hasattr(value, "__dict__") else ()
    return any(_holds_tensors(one, depth - 1) for one in (*inner, *held))


def _image(value: Tensor) -> bool:
    return value.ndim == 3 and value.shape[0] in (1, 3)


def _surely_examples(value: Sequence[Any]) -> bool:
    """Whether the entries of a list can't be batches: they hold scalars, tensors of different sizes, or images."""
    if not _are_examples(value) or not all(isinstance(one, (Tensor, Mapping, list, tuple)) for one in value):
        return False
    for one in value:
        tensors = [inner for inner in _nodes(one) if isinstance(inner, Tensor)]
        if not tensors:
            return False
        numbers = any(isinstance(inner, (bool, int, float)) for inner in _nodes(one)) or any(not t.ndim for t in tensors)
        if not (numbers or all(map(_image, tensors)) or len({tensor.shape[0] for tensor in tensors}) > 1):
            return False
    return True


def _nodes(value: Any) -> Iterator[Any]:
    yield value
    for one in _children(value):
        yield from _nodes(one)


def _length(value: Any) -> int:
    """The number of examples in what is a list of some."""
    if isinstance(value, PackedSequence):
        return int(value.batch_sizes[0])
    if hasattr(value, "to_data_list") and hasattr(type(value), "from_data_list"):
        return len(value.to_data_list())
    return len(value) if isinstance(value, (list, tuple)) and value and _are_examples(value) else 0


def _covered(value: Any, size: int, axis: int) -> float:
    """Which share of a batch's tensors has a size."""

    def count(one: Any) -> tuple[int, int]:
        if isinstance(one, Tensor):
            return (int(_axis(one, size, axis) is not None), 1) if one.ndim else (0, 0)
        if isinstance(one, (torch.Size, *_PLAIN)):
            return 0, 0
        total = sum(isinstance(inner, Tensor) and bool(inner.ndim) for inner in _nodes(one))
        length = _length(one)
        if length == size:
            return max(total, 1), max(total, 1)
        if length and not isinstance(one, (list, tuple)):
            return 0, 1
        counts = [count(inner) for inner in _children(one)]
        return sum(had for had, _ in counts), sum(of for _, of in counts)

    had, of = count(value)
    return had / of if of else 0.0


def _children(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple)) and not isinstance(value, PackedSequence):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, one.name) for one in dataclasses.fields(value)]
    return []


def _remedy(what: str) -> str:
    return f"{what}; give the callback deal=function, which makes a list of parts of (batch, networks)"
