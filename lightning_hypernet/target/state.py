"""State: what the runs of a copy may change beside its tensors, and how it was."""

from __future__ import annotations

import copy
import functools
import types
import weakref
from array import array
from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_hypernet.target.copies import HOOKS, all_fixed, attributes_of, is_fixed, is_outside

_MANY = 16_384
_SAMPLE = 1024
_REFERENCES = (weakref.ref, weakref.WeakKeyDictionary, weakref.WeakSet)
_ROWS = (np.ndarray, bytearray, array)


class State:
    """The attributes, containers, plain objects and arrays of a module and of its submodules, as they are now.

    Args:
        root: The module.
        passed: Identities of objects that are not its own.

    Attributes:
        opaque: Whether the module holds something that can't be followed, such as an iterator.
    """

    def __init__(self, root: nn.Module, passed: Collection[int] = ()) -> None:
        self.opaque = False
        self._parts: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any, Sequence[Any]]] = []
        self._objects: list[tuple[Any, dict[str, Any]]] = []
        self._empty: list[Any] = []
        self._rows: list[tuple[Any, Any]] = []
        modules = [module for module in root.modules() if not isinstance(module, torch.jit.ScriptModule)]
        self._seen = {*passed, *(id(module) for module in modules)}
        for module in modules:
            attributes = vars(module)
            self._parts.append((module, attributes, dict(attributes)))
            for name, value in attributes.items():
                if name not in HOOKS:
                    self._note(value)

    def _note(self, value: Any) -> None:
        """Note a value and what it holds, all the way down."""
        if id(value) in self._seen or is_fixed(value) or is_outside(value) or isinstance(value, _REFERENCES):
            return
        self._seen.add(id(value))
        if isinstance(value, (nn.Module, Tensor)):
            return
        if isinstance(value, (types.MethodType, functools.partial)):
            for one in (value.__self__,) if isinstance(value, types.MethodType) else (value.func, value.args, value.keywords):
                self._note(one)
            return
        has_attributes = hasattr(value, "__dict__") or bool(getattr(type(value), "__slots__", ()))
        if has_attributes:
            attributes = dict(attributes_of(value))
            self._objects.append((value, attributes))
            for one in attributes.values():
                self._note(one)
        if isinstance(value, _ROWS):
            self._rows.append((value, copy.copy(value)))
        elif isinstance(value, (dict, list, set, deque, tuple, frozenset)):
            self._note_container(value)
        elif not has_attributes:
            self.opaque |= not isinstance(value, (types.MappingProxyType, weakref.ReferenceType)) and not _immutable(value)

    def _note_container(self, value: Any) -> None:
        if not isinstance(value, (tuple, frozenset)):
            if not value:
                self._empty.append(value)
                return
            whole = dict(value) if isinstance(value, dict) else list(value)
            step = max(1, len(whole) // _SAMPLE)
            sample = list(whole)[::step] if isinstance(whole, dict) else range(0, len(whole), step)
            self._containers.append((value, whole, sample))
        held = value.values() if isinstance(value, dict) else value
        if len(held) < _SAMPLE or not all_fixed(held):
            for one in list(held):
                self._note(one)

    def note(self, module: nn.Module, name: str) -> None:
        """Take over an attribute as it is now."""
        for one, attributes, content in self._parts:
            if one is module:
                content[name] = attributes[name]
                self._note(attributes[name])

    def set_mode(self, index: int, mode: bool) -> None:
        """Put a module, by its number, in training or evaluation mode for good."""
        _, attributes, content = self._parts[index]
        attributes["training"] = content["training"] = mode

    def restore(self) -> None:
        """Put everything back as it was; of a container of over 16,384 entries its length and a thousand are looked at."""
        for _, attributes, content in self._parts:
            attributes.clear()
            attributes.update(content)
        if any(self._empty):
            for container in self._empty:
                _fill(container, ())
        for live, was, sample in self._containers:
            if not (_alike(live, was, sample) if len(was) > _MANY else _same(live, was)):
                _fill(live, was)
        for value, attributes in self._objects:
            now = dict(attributes_of(value))
            if not _same(now, attributes):
                for name in now.keys() - attributes.keys():
                    object.__delattr__(value, name)
                for name, one in attributes.items():
                    object.__setattr__(value, name, one)
        for rows, numbers in self._rows:
            if isinstance(rows, np.ndarray):
                if rows.flags.writeable:
                    np.copyto(rows, numbers)
            else:
                rows[:] = numbers

    def changed(self) -> bool:
        """Whether anything is other than it was, modes of modules aside."""
        for module, attributes, content in self._parts:
            if not _same({**attributes, "training": module.training}, {**content, "training": module.training}):
                return True
        return (
            any(self._empty)
            or any(not _same(live, was) for live, was, _ in self._containers)
            or any(not _same(dict(attributes_of(value)), attributes) for value, attributes in self._objects)
            or any(not np.array_equal(rows, numbers) for rows, numbers in self._rows)
        )


def _immutable(value: Any) -> bool:
    """Whether a value is told from others by its content and can be a key, as a number, a path or a date."""
    own = {name for cls in type(value).__mro__ if cls is not object for name in vars(cls)}
    return "__eq__" in own and type(value).__hash__ is not None


def _fill(container: Any, content: Any) -> None:
    """Give a container its content, past whatever a class of its own makes of being changed."""
    if isinstance(container, dict):
        kind: type[dict[Any, Any]] = OrderedDict if isinstance(container, OrderedDict) else dict
        kind.clear(container)
        for key in content:
            kind.__setitem__(container, key, content[key])
    elif isinstance(container, list):
        list.__setitem__(container, slice(None), content)
    elif isinstance(container, set):
        set.clear(container)
        set.update(container, content)
    else:
        deque.clear(container)
        deque.extend(container, content)


def _alike(live: Any, was: Any, sample: Sequence[Any]) -> bool:
    """Whether a large container holds the very same objects in some of its places."""
    if len(live) != len(was):
        return False
    if isinstance(live, dict):
        return all(dict.get(live, key, live) is was[key] for key in sample)
    return not isinstance(live, (list, deque)) or all(live[index] is was[index] for index in sample)


def _same(live: Any, was: Any) -> bool:
    """Whether a container holds the very same objects."""
    if len(live) != len(was) or not all(map(is_, live, was)):
        return False
    return not isinstance(live, dict) or all(map(is_, live.values(), was.values()))
