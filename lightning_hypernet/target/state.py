"""State: what the runs of a copy may change beside its tensors, and how it was."""

from __future__ import annotations

import functools
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Collection
from operator import is_
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_hypernet.target.copies import HOOKS, all_fixed, is_fixed, is_outside

_MANY = 1024
_REFERENCES = (types.MethodType, functools.partial, weakref.ref)


class State:
    """The attributes, containers and plain objects of a module and of its submodules, as they are now.

    Args:
        root: The module.
        passed: Identities of objects that are not the module's own.
    """

    def __init__(self, root: nn.Module, passed: Collection[int] = ()) -> None:
        self._parts: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = []
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._lists: list[tuple[Any, list[Any]]] = []
        self._empty: list[Any] = []
        self._arrays: list[tuple[Any, Any]] = []
        self._lively: set[int] | None = None
        seen = {*passed, *(id(module) for module in root.modules())}
        for module in root.modules():
            attributes = vars(module)
            self._parts.append((module, attributes, dict(attributes)))
            for name, value in attributes.items():
                if name not in HOOKS:
                    self._note(value, seen)

    def _note(self, value: Any, seen: set[int]) -> None:
        """Note what an attribute holds, all the way down."""
        if id(value) in seen or is_fixed(value) or is_outside(value) or isinstance(value, (nn.Module, Tensor, *_REFERENCES)):
            return
        seen.add(id(value))
        if isinstance(value, (dict, list, set, deque)) and not value:
            self._empty.append(value)
            return
        if isinstance(value, dict):
            self._dicts.append((value, dict(value)))
            held: Any = value.values()
        elif isinstance(value, (list, set, deque)):
            self._lists.append((value, list(value)))
            held = value
        elif isinstance(value, tuple):
            held = value
        elif isinstance(value, np.ndarray):
            self._arrays.append((value, value.copy()))
            return
        elif hasattr(value, "__dict__"):
            self._dicts.append((vars(value), dict(vars(value))))
            held = vars(value).values()
        else:
            return
        if len(held) < _MANY or not all_fixed(held):
            for one in list(held):
                self._note(one, seen)

    def note(self, module: nn.Module, name: str) -> None:
        """Take over an attribute as it is now."""
        for one, attributes, content in self._parts:
            if one is module:
                if name in attributes:
                    content[name] = attributes[name]
                    self._note(attributes[name], {id(each) for each in one.modules()})
                else:
                    content.pop(name, None)

    def set_mode(self, index: int, mode: bool) -> None:
        """Put a module, by its number, in training or evaluation mode for good."""
        _, attributes, content = self._parts[index]
        attributes["training"] = content["training"] = mode

    def restore(self) -> None:
        """Put everything back as it was.

        A container of more than a thousand entries is compared entry by entry the first time only, later if it had changed
        then; its length always.
        """
        for _, attributes, content in self._parts:
            attributes.clear()
            attributes.update(content)
        if any(self._empty):
            for container in self._empty:
                _fill(container, ())
        lively = set() if self._lively is None else self._lively
        for live, was in self._dicts:
            if self._differs(live, was, lively):
                _fill(live, was)
        for one, items in self._lists:
            if self._differs(one, items, lively):
                _fill(one, items)
        for array, numbers in self._arrays:
            np.copyto(array, numbers)
        self._lively = lively

    def _differs(self, live: Any, was: Any, lively: set[int]) -> bool:
        if len(live) == len(was) and len(was) > _MANY and self._lively is not None and id(live) not in lively:
            return False
        if _same(live, was):
            return False
        lively.add(id(live))
        return True

    def changed(self) -> bool:
        """Whether anything is other than it was, modes of modules aside."""
        for module, attributes, content in self._parts:
            if not _same({**attributes, "training": module.training}, {**content, "training": module.training}):
                return True
        return (
            any(self._empty)
            or any(not _same(live, was) for live, was in (*self._dicts, *self._lists))
            or any(not np.array_equal(array, numbers) for array, numbers in self._arrays)
        )


def _fill(container: Any, content: Any) -> None:
    """Give a container its content, past whatever a class of its own makes of being changed."""
    if isinstance(container, dict):
        kind: type[dict[Any, Any]] = OrderedDict if isinstance(container, OrderedDict) else dict
        kind.clear(container)
        for key in content:
            kind.__setitem__(container, key, content[key])
    elif isinstance(container, list):
        list.__setitem__(container, slice(None), content)
    else:
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(content)


def _same(live: Any, was: Any) -> bool:
    """Whether a container holds the very same objects."""
    if len(live) != len(was) or not all(map(is_, live, was)):
        return False
    return not isinstance(live, dict) or all(map(is_, live.values(), was.values()))
