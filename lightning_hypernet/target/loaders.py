"""Loaders: how the batches of a loader reach a target."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.layout import BatchDim, laid_out

InputsOf = Callable[[Any], Any]
"""Gives what a target is called with of a batch: a tuple of arguments, a mapping of keyword arguments, or the one argument."""
_LITERALS = (type(None), bool, int, float, str)
_DEEPEST = 8


def check_loader(loader: Any, name: str = "the loader", part: bool = False, again: bool = False) -> None:
    """See that something gives batches, one after the other, and ends.

    Args:
        loader: What was given.
        name: What it is called in the message.
        part: Whether only a part of it is read, so that it need not end.

        again: Whether it is read more than once.

    Raises:
        TypeError: If it gives none.
        ValueError: If it is known never to end, or can be read once alone and not again.
    """
    if not isinstance(loader, Iterable) or isinstance(loader, (str, bytes, Mapping, Tensor)):
        raise TypeError(f"{name} must give batches, one after the other; {type(loader).__name__} does not")
    if again and isinstance(loader, Iterator):
        raise ValueError(f"{name} is read several times, and a {type(loader).__name__} gives its batches once: pass a list")
    if not part and isinstance(loader, (itertools.cycle, itertools.repeat, itertools.count)):
        raise ValueError(
            f"{name}, {type(loader).__name__}, never ends: pass a part of it, as itertools.islice gives (an ensemble takes "
            "batches=)"
        )


class Feed:
    """How a batch becomes the arguments of a target: as `training_step` was seen to call it, or as `forward` takes it.

    Attributes:
        batch: The batch of the present training step; None: none is known.
        seen: Where the arguments stood in it: ``{"args": [...], "kwargs": {...}}``, each ``{"path": keys}`` or
            ``{"value": plain}``; None: not seen, or the step changes what it passes on.
    """

    def __init__(self, seen: Mapping[str, Any] | None = None) -> None:
        self.batch: Any = None
        self.seen: dict[str, Any] | None = None if seen is None else dict(seen)
        self._asked = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "batch": None}

    @contextmanager
    def of(self, batch: Any) -> Iterator[None]:
        """Within, a training step has this batch."""
        before, self.batch = self.batch, batch
        try:
            yield
        finally:
            self.batch = before

    def note(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """See, at the first call of a target within a step, where its arguments come from."""
        if self._asked or self.batch is None:
            return
        self._asked = True
        places = dict(_places(self.batch))
        positional, named = [_found(one, places) for one in args], {key: _found(one, places) for key, one in kwargs.items()}
        known = None not in (*positional, *named.values())
        self.seen = {"args": positional, "kwargs": named} if known else {"changed": True}

    def read(
        self,
        batches: Iterable[Any],
        device: torch.device,
        target: nn.Module,
        inputs: InputsOf | None = None,
        batch_dim: BatchDim = None,
    ) -> Iterator[Arguments]:
        """The arguments of every batch, on a device.

        Args:
            batches: What a loader gives, or arguments.
            device: Where they are moved.
            target: The target.
            inputs: Gives what the target is called with; None: as it was seen, or as its `forward` takes a batch.
            batch_dim: Where the batch lies in it.

        Raises:
            ValueError: If a batch could reach the target in several ways or in none.
        """
        for batch in batches:
            if isinstance(batch, Arguments):
                arguments = batch
            else:
                arguments = laid_out(*self._call(batch, target, inputs), batch_dim, target)
                if all(one is None or isinstance(one, (int, float)) for one in arguments.leaves):
                    raise ValueError(f"a batch of the loader, {batch!r}, gives the target no tensors: pass inputs=")
            yield arguments.map(lambda tensor: tensor.to(device))

    def _call(self, batch: Any, target: nn.Module, inputs: InputsOf | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if inputs is not None:
            given = inputs(batch)
            return (
                (given if isinstance(given, tuple) else (), dict(given))
                if isinstance(given, Mapping)
                else (given if isinstance(given, tuple) else (given,), {})
            )
        if self.seen is not None and "changed" in self.seen:
            warnings.warn(
                f"training_step changes a batch before it calls {type(target).__name__}, which a loader's batches now reach as "
                "they are: pass inputs=, a function of a batch that gives the arguments",
                stacklevel=5,
            )
        elif self.seen is not None:
            try:
                return tuple(_at(batch, one) for one in self.seen["args"]), {
                    key: _at(batch, one) for key, one in self.seen["kwargs"].items()
                }
            except (AttributeError, KeyError, IndexError, TypeError):
                pass  # another loader, whose batches look otherwise
        return call_of(target, batch)


def _places(value: Any, path: tuple[Any, ...] = (), opened: set[int] | None = None) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Every object of a batch, by its identity, and the keys that lead to it; ``{"name": text}`` is an attribute."""
    yield id(value), path
    opened = set() if opened is None else opened
    if not isinstance(value, (Mapping, tuple, list)):
        if id(value) in opened or len(path) > _DEEPEST:
            return  # objects may refer to each other
        opened.add(id(value))
    for key, entry in _entries(value):
        if not isinstance(entry, _LITERALS):
            yield from _places(entry, (*path, key), opened)


def _entries(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, (tuple, list)):
        return enumerate(value)
    if isinstance(value, (Tensor, nn.Module, type)) or not hasattr(value, "__dict__"):
        return ()
    keys = value.keys() if callable(getattr(value, "keys", None)) else ()  # as graphs of torch_geometric have
    names = [name for name in (*vars(value), *keys) if isinstance(name, str) and not name.startswith("_")]
    return [({"name": name}, getattr(value, name, None)) for name in dict.fromkeys(names)]


def _found(value: Any, places: Mapping[int, tuple[Any, ...]]) -> dict[str, Any] | None:
    if isinstance(value, _LITERALS):
        return {"value": value}
    return {"path": list(places[id(value)])} if id(value) in places else None


def _at(batch: Any, place: Mapping[str, Any]) -> Any:
    if "value" in place:
        return place["value"]
    for key in place["path"]:
        if isinstance(key, Mapping) and not str(key["name"]).startswith("_"):
            batch = getattr(batch, key["name"])
            continue
        if not isinstance(batch, (Mapping, tuple, list)):
            raise TypeError(f"a {type(batch).__name__} has no entry {key!r} of its own")
        batch = batch[key]
    return batch


def call_of(target: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a target is called with, of a batch that is its inputs or holds them first, as its `forward` takes it.

    Args:
        target: The target.
        batch: A tensor, a mapping of arguments by name, or a tuple or list that begins with the inputs.

    Returns:
        Arguments and keyword arguments.

    Raises:
        ValueError: If the batch could reach it in several ways or in none.
    """
    taken = list(inspect.signature(target.forward).parameters.values())
    positional = [one for one in taken if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    needed = sum(one.default is one.empty for one in positional)
    most = 1 << 30 if any(one.kind is one.VAR_POSITIONAL for one in taken) else len(positional)
    if isinstance(batch, Mapping):
        return _of_mapping(target, batch, taken)
    if not isinstance(batch, (tuple, list)):
        return (batch,), {}
    if not batch:
        raise ValueError(_unclear(target, "an empty batch"))
    first = batch[0]
    if isinstance(first, Mapping):
        return _of_mapping(target, first, taken)
    if isinstance(first, (tuple, list)):
        if needed <= 1 < len(first) <= most and most < 1 << 30:
            raise ValueError(_unclear(target, f"inputs of {len(first)} entries"))
        return (tuple(first) if max(needed, 2) <= len(first) <= most else (first,)), {}
    before = len(batch) - 1 if len(batch) > needed else len(batch)
    if needed > 1:
        if len(batch) < needed:
            raise ValueError(_unclear(target, f"a batch of {len(batch)} entries"))
        return tuple(batch[:needed]), {}
    if before > 1 and most > 1 and all(isinstance(one, Tensor) for one in batch[:before]):
        raise ValueError(_unclear(target, f"a batch of {len(batch)} entries"))
    return (first,), {}


def _of_mapping(target: nn.Module, batch: Mapping[Any, Any], taken: Sequence[inspect.Parameter]) -> tuple[Any, dict[str, Any]]:
    if any(one.kind is one.VAR_KEYWORD for one in taken) and all(isinstance(key, str) for key in batch):
        return (), dict(batch)
    names = {one.name for one in taken}
    required = {one.name for one in taken if one.default is one.empty and one.kind is not one.VAR_POSITIONAL}
    if required <= set(batch):
        return (), {key: value for key, value in batch.items() if key in names}
    if len(required) == 1:
        return (batch,), {}
    raise ValueError(_unclear(target, f"a batch of {', '.join(map(str, batch))}"))


def _unclear(target: nn.Module, what: str) -> str:
    signature = f"{type(target).__name__}.forward{inspect.signature(target.forward)}"
    return (
        f"it is not clear how {what} reaches {signature}; say so with inputs=, a function that gives its arguments of a batch"
    )
