"""Part: what a target offers beside its forward, run with generated weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

Call = Callable[[str, tuple[Any, ...], dict[str, Any]], Any]
"""Runs a method or submodule of the target, named by its path, with generated weights."""


class Part:
    """A submodule of the target: its attributes are the submodule's, calls run with generated weights.

    Args:
        module: The submodule.
        path: Its path in the target.
        call: Runs parts of the target.
    """

    def __init__(self, module: nn.Module, path: str, call: Call) -> None:
        self._module, self._path, self._call = module, path, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the submodule with generated weights."""
        return self._call(self._path, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        """What the submodule has."""
        return attribute_of(self._module, name, self._call, self._path)


def attribute_of(owner: nn.Module, name: str, call: Call, path: str = "") -> Any:
    """An attribute of the target or of a part of it; methods and submodules run with generated weights.

    Args:
        owner: The target or a submodule.
        name: The attribute.
        call: Runs parts of the target.
        path: Path of the owner in the target.

    Returns:
        The attribute; a `Part` for a submodule, a function for a method.
    """
    value = getattr(owner, name)
    path = f"{path}.{name}" if path else name
    if isinstance(value, nn.Module):
        return Part(value, path, call)
    if inspect.ismethod(value) and value.__self__ is owner:
        return lambda *args, **kwargs: call(path, args, kwargs)
    return value
