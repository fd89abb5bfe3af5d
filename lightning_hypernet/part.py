"""Part: what a target offers beside its forward, run with generated weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

Call = Callable[[str, tuple[Any, ...], dict[str, Any]], Any]
"""Runs a method or submodule of the target, or reads a property, named by its path, with generated weights."""
_MODES = ("train", "eval")
_PARAMETERS = ("parameters", "named_parameters")


class Part:
    """A submodule of the target: its attributes and items are the submodule's, calls run with generated weights.

    Args:
        module: The submodule.
        path: Its path in the target.
        call: Runs parts of the target.
        aliases: Every generated parameter's names in the target.
    """

    def __init__(self, module: nn.Module, path: str, call: Call, aliases: Mapping[str, Sequence[str]]) -> None:
        vars(self).update(_module=module, _path=path, _call=call, _aliases=aliases)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the submodule with generated weights."""
        return self._call(self._path, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        """What the submodule has."""
        return attribute_of(self._module, name, self._call, self._aliases, self._path)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set it on the submodule."""
        set_attribute(self._module, name, value)

    def __getitem__(self, key: int | slice | str) -> Any:
        """One part of a container; a list of parts for a slice.

        Raises:
            TypeError: If the submodule is no container.
        """
        if not hasattr(self._module, "__getitem__"):
            raise TypeError(f"{self._path!r} is a {type(self._module).__name__}, which has no items")
        if isinstance(key, str):
            return getattr(self, key)
        names = [*self._module._parameters, *self._module._modules]
        return [getattr(self, name) for name in names[key]] if isinstance(key, slice) else getattr(self, names[key])

    def __iter__(self) -> Iterator[Any]:
        """The parts of a list, the keys of a dictionary."""
        return iter(self._module if isinstance(self._module, (nn.ModuleDict, nn.ParameterDict)) else self[:])

    def __len__(self) -> int:
        """How many items a container has."""
        return len(self._module)

    def __bool__(self) -> bool:
        """True but for an empty container."""
        return bool(self._module)


def attribute_of(owner: nn.Module, name: str, call: Call, aliases: Mapping[str, Sequence[str]], path: str = "") -> Any:
    """An attribute of the target or of a part of it; methods and submodules run with generated weights.

    Args:
        owner: The target or a submodule.
        name: The attribute.
        call: Runs parts of the target.
        aliases: Every generated parameter's names in the target.
        path: Path of the owner in the target.

    Returns:
        The attribute; a `Part` for a submodule, a function for a method.

    Raises:
        AttributeError: If the owner has none of that name, or it is a generated parameter or holds some.
    """
    inside = f"{path}.{name}" if path else name
    try:
        value = getattr(owner, name)
    except StopIteration:  # a property that looks for the first parameter, as `device` often does
        return call(inside, (), {})
    if value is None and any(inside in names for names in aliases.values()):
        raise AttributeError(
            f"{inside!r} is generated, so every network has its own: read hypernet.population.weights in a training step, or "
            f"keep it as it is with exclude=[{inside!r}]"
        )
    if isinstance(value, nn.Module):
        return Part(value, inside, call, aliases)
    if not (inspect.ismethod(value) and value.__self__ is owner) or name in _MODES:
        return value
    if name in _PARAMETERS and any(one.startswith(f"{path}.") for names in aliases.values() for one in names):
        raise AttributeError(
            f"the parameters of {path!r} are generated: train hypernet.parameters(), or keep these as they are with "
            f"exclude=['{path}.*']"
        )
    return lambda *args, **kwargs: call(inside, args, kwargs)


def set_attribute(owner: nn.Module, name: str, value: Any) -> None:
    """Set an attribute of the target or of a part of it.

    Raises:
        AttributeError: If the value is a module or a parameter: those are generated as they were when the target was wrapped.
    """
    if isinstance(value, (nn.Module, nn.Parameter)):
        raise AttributeError(f"{name!r} is a part of the target, which must be replaced before the target is wrapped")
    setattr(owner, name, value)
