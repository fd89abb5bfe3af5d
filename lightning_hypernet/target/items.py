"""Items: what stands for a container has its items, and what stands for another module has none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_METHODS: dict[str, Callable[..., Any]] = {
    "__iter__": lambda self: iter(self._items()),
    "__len__": lambda self: len(self._items()),
    "__contains__": lambda self, key: key in self._items(),
}


def with_items(cls: type[T], like: Any) -> type[T]:
    """The class, with those of the methods of containers that another object has, and only those.

    It differs from the class in nothing else; its instances are copied and pickled as of the class.

    Args:
        cls: A class whose method ``_items`` gives a container; or one that was made from it here.
        like: The other object.
    """
    names = tuple(name for name in _METHODS if hasattr(type(like), name))
    made: type[T] = _made(vars(cls).get("_without_items", cls), names)
    return made


@functools.cache
def _made(cls: Any, names: tuple[str, ...]) -> Any:
    if not names:
        return cls
    body: dict[str, Any] = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    body |= {name: _METHODS[name] for name in names}
    return type(cls)(cls.__name__, (cls,), {**body, "_without_items": cls, "__reduce_ex__": _reduced, "_names_of_items": names})


def _reduced(self: Any, protocol: int) -> Any:
    cls = type(self)
    return (_empty, (cls._without_items, cls._names_of_items), *super(cls, self).__reduce_ex__(max(protocol, 2))[2:])


def _empty(cls: type, names: tuple[str, ...]) -> Any:
    return object.__new__(_made(cls, names))
