"""The facade: what a target offers beside its forward, run with generated weights."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_hypernet.target import changes
from lightning_hypernet.target.copies import Copies
from lightning_hypernet.target.items import with_items
from lightning_hypernet.target.replicas import Replicas

Call = Callable[[str, tuple[Any, ...], dict[str, Any]], Any]
"""Runs a method or submodule of the target, or reads a property, named by its path, with generated weights."""


class Facade:
    """What a target offers: attributes as they are, methods and submodules run with generated weights.

    Args:
        replicas: The replicas of the target.
        call: Runs parts of the target.
        shapes: The shape of every generated parameter, by all of its names in the target.
        forget: Is called when the target has changed, of which no network is kept then.
    """

    def __init__(
        self, replicas: Replicas, call: Call, shapes: Mapping[str, tuple[int, ...]], forget: Callable[[], None]
    ) -> None:
        self.call = call
        self._replicas = replicas
        self._generated = dict(shapes)
        self._forget = forget

    def attribute(self, owner: nn.Module, name: str, path: str = "") -> Any:
        """An attribute of the target or of a part of it; methods and submodules run with generated weights.

        Args:
            owner: The target or a submodule.
            name: The attribute.
            path: Path of the owner in the target.

        Returns:
            The attribute; a `Part` for a submodule, a function for a method.

        Raises:
            AttributeError: If the owner has none of that name, or it is a generated parameter or holds some.
        """
        inside = _inside(path, name)
        try:
            value = getattr(owner, name)
        except (StopIteration, TypeError, AttributeError):
            if isinstance(getattr(type(owner), name, None), property):  # one that reads weights, or looks for the first of them
                return self.call(inside, (), {})
            raise
        if value is None and inside in self._generated:
            raise _refused(inside, inside)
        if isinstance(value, nn.Module):
            return Part(self, value, inside)
        if isinstance(owner, nn.ModuleDict) and name in ("items", "values"):
            part = Part(self, owner, path)
            return lambda: [(key, part[key]) if name == "items" else part[key] for key in owner]
        if not (inspect.ismethod(value) and value.__self__ is owner) or _is_of_the_target(name):
            return value
        if changes.is_change(owner, name) or name in ("children", "named_children", "get_parameter", "get_submodule"):
            return self._handled(owner, name, value, path)
        return lambda *args, **kwargs: tree_map(self._given, self.call(inside, args, kwargs))

    def _given(self, leaf: Any) -> Any:
        """What a method returned; parts in place of modules of the target."""
        named = self._replicas.template.named_modules() if isinstance(leaf, nn.Module) else ()
        return next((Part(self, one, path) for path, one in named if one is leaf), leaf)

    def _handled(self, owner: nn.Module, name: str, method: Callable[..., Any], path: str) -> Any:
        """A method of `nn.Module` that gives parts or parameters away, or changes them."""
        holds = any(_is_in(one, path) for one in self._generated)
        if holds and name in ("children", "named_children"):
            named = ((key, Part(self, one, _inside(path, key))) for key, one in owner.named_children())
            return lambda: named if name == "named_children" else (part for _, part in named)
        if holds and name == "get_submodule":
            return lambda target: Part(self, owner.get_submodule(target), _inside(path, target))
        if holds and name == "get_parameter":
            return lambda target: self._parameter(owner, target, path)
        if not changes.is_change(owner, name):
            return method
        if holds:
            raise changes.refused(name, path)

        def changed(*args: Any, **kwargs: Any) -> Any:
            try:
                result = method(*args, **kwargs)
            finally:
                self._renew()
            return Part(self, owner, path) if result is owner else result

        return changed

    def _parameter(self, owner: nn.Module, name: str, path: str) -> nn.Parameter:
        if _inside(path, name) in self._generated:
            raise _refused(_inside(path, name), _inside(path, name))
        return owner.get_parameter(name)

    def apply(self, module: nn.Module, function: Callable[[nn.Module], Any]) -> None:
        """Call a function with every module of the target or of a part of it; see `changes.apply`."""
        try:
            changes.apply(function, module, self._replicas, self._generated)
        finally:
            self._renew()

    def _renew(self) -> None:
        """Let all networks follow a change of the target."""
        self._replicas.clear()
        self._forget()

    def set(self, owner: nn.Module, name: str, value: Any, path: str = "") -> None:
        """Set an attribute of the target or of a part of it, for all networks.

        Raises:
            AttributeError: If the value is a module or a parameter, which stay as they were when the target was wrapped, or
                takes the place of what is generated.
        """
        inside = _inside(path, name)
        if isinstance(value, (nn.Module, nn.Parameter)) or any(_is_in(one, inside) for one in self._generated):
            raise AttributeError(f"{name!r} is a part of the target, which must be replaced before the target is wrapped")
        self._replicas.set(owner, name, value)

    def delete(self, owner: nn.Module, name: str, path: str = "") -> None:
        """Delete an attribute of the target or of a part of it, for all networks.

        Raises:
            AttributeError: If there is none, or it holds or is what is generated.
        """
        if any(_is_in(one, _inside(path, name)) for one in self._generated):
            raise AttributeError(f"{name!r} is a part of the target, which must be removed before the target is wrapped")
        delattr(owner, name)
        self._renew()


class _Item:
    """``__getitem__`` of what stands for a module: the module's items, if it has any."""

    def __get__(self, holder: Any, owner: Any = None) -> Any:
        return self if holder is None else holder._items().item


class NoItemsError(AttributeError, TypeError):
    """An item was asked for of a module that is no container."""


class StandIn(nn.Module):
    """Stands in a target's place: what it does not have itself, it takes from the target; a container for a container.

    A class that inherits from it sets `target`, and last calls `stand_in`.
    """

    target: nn.Module
    _facade: Facade
    __getitem__ = _Item()

    def stand_in(self, facade: Facade) -> None:
        """From now on offer what the target does."""
        self._facade = facade
        self.__class__ = with_items(type(self), self.target)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy whose target is made as every copy of the target is."""
        Copies(self.target, "module", memo)
        twin = memo[id(self)] = self.__class__.__new__(self.__class__)
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        return twin

    def __getattr__(self, name: str) -> Any:
        """Fall back to the target's attribute."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_facade" not in self.__dict__ or name.startswith("_"):
                raise
            return self._facade.attribute(self.target, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set on the target what the target has and this has not."""
        if "_facade" in self.__dict__ and not name.startswith("_") and not self._has(name) and hasattr(self.target, name):
            self._facade.set(self.target, name, value)
        else:
            super().__setattr__(name, value)

    def _has(self, name: str) -> bool:
        places = (self.__dict__, self._parameters, self._buffers, self._modules)
        return hasattr(type(self), name) or any(name in place for place in places)

    def __delattr__(self, name: str) -> None:
        """Delete on the target what the target has and this has not."""
        if "_facade" in self.__dict__ and not name.startswith("_") and not self._has(name) and hasattr(self.target, name):
            self._facade.delete(self.target, name)
        else:
            super().__delattr__(name)

    def apply(self, fn: Callable[[nn.Module], Any]) -> Any:
        """Call a function with every module of the target, not with those of the generator; returns self.

        Raises:
            RuntimeError: If it changes a generated parameter: apply it before the target is wrapped.
        """
        mode = self.target.training
        self._facade.apply(self.target, fn)
        if self.target.training != mode:
            modes = [(module, module.training) for module in self.target.modules()]
            self.train(self.target.training)
            for module, one in modes:
                module.training = one
        return self

    def _items(self) -> Items:
        return Items(self._facade, self.target, "")

    def __bool__(self) -> bool:
        """True, as modules are."""
        return True


class Part:
    """A submodule of the target: its attributes and items are the submodule's, calls run with generated weights.

    Args:
        facade: The facade of the target.
        module: The submodule.
        path: Its path in the target; empty for the target itself.
    """

    __getitem__ = _Item()

    def __new__(cls, facade: Facade | None = None, module: nn.Module | None = None, path: str = "") -> Part:
        """A container for a container."""
        return object.__new__(with_items(cls, module))

    def __init__(self, facade: Facade, module: nn.Module, path: str) -> None:
        vars(self).update(_facade=facade, _module=module, _path=path)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the submodule with generated weights."""
        return self._facade.call(self._path or "forward", args, kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled; before 3.11 Python would ask the submodule for it."""
        return dict(vars(self))

    def __getattr__(self, name: str) -> Any:
        """What the submodule has."""
        if "_module" not in vars(self):  # while it is copied
            raise AttributeError(name)
        return self._facade.attribute(self._module, name, self._path)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set it on the submodule."""
        self._facade.set(self._module, name, value, self._path)

    def __delattr__(self, name: str) -> None:
        """Delete it of the submodule."""
        self._facade.delete(self._module, name, self._path)

    def apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function with every module of the part, as `StandIn.apply` does, and return self."""
        if type(self._module).apply is not nn.Module.apply:
            return self._facade.call(_inside(self._path, "apply"), (fn, *args), kwargs)  # a method of its own
        self._facade.apply(self._module, fn)
        return self

    def __eq__(self, other: object) -> bool:
        """Whether it is the same part of the same target."""
        return isinstance(other, Part) and other._facade is self._facade and other._module is self._module

    def __hash__(self) -> int:
        return id(self._module)

    def __bool__(self) -> bool:
        """True but for an empty container."""
        return bool(self._module)

    def _items(self) -> Items:
        return Items(self._facade, self._module, self._path)


class Items:
    """The items of a submodule that is a container; arguments as of `Part`."""

    def __init__(self, facade: Facade, module: Any, path: str) -> None:
        self._facade, self._module, self._path = facade, module, path
        if not hasattr(module, "__getitem__") and not hasattr(module, "__iter__"):
            raise NoItemsError(f"{path or 'the target'} is a {type(module).__name__}, which has no items")

    def item(self, key: Any) -> Any:
        """An item of a container; several for a slice, which run one after another."""
        if isinstance(key, slice) and isinstance(self._module, (nn.Sequential, nn.ModuleList)):
            return Parts(list(self)[key])
        return self._wrap(self._module[key])

    def __iter__(self) -> Iterator[Any]:
        """The items of a list, the keys of a dictionary."""
        return map(self._wrap, self._module)

    def __len__(self) -> int:
        return len(self._module)

    def __contains__(self, key: Any) -> bool:
        return (key._module if isinstance(key, Part) else key) in self._module

    def _wrap(self, item: Any) -> Any:
        """Parts in place of modules."""
        if item is None:
            raise _refused(f"an item of {self._path or 'the target'}", f"{self._path}.*" if self._path else "*")
        name = next((name for name, module in self._module.named_modules() if module is item), None)
        return item if name is None else Part(self._facade, item, _inside(self._path, name))


class Parts(list[Any]):
    """A slice of a container."""

    def __call__(self, x: Any) -> Any:
        """Run one part after another."""
        for part in self:
            x = part(x)
        return x


class PartCalls:
    """Tells of parts that are called one after another in evaluation, where each call answers for all members together."""

    def __init__(self) -> None:
        self.told = False
        self.forget()

    def forget(self) -> None:
        """Take the next call for the first."""
        self._last: tuple[str, list[ref[Tensor]], list[ref[Tensor]]] | None = None

    def note(self, name: str, given: Sequence[Tensor], members: Any, joined: Any) -> None:
        """Warn, once, if what a part was given may come from the call before.

        Args:
            name: What was called, ``"forward"`` or a path in the target.
            given: The tensors in its arguments.
            members: What it made with each network, every tensor ``(members, ...)``.
            joined: What it returns.
        """
        if self.told:
            return
        last, self._last = self._last, None
        if not _alike(name, members):
            self._last = name, [ref(one) for one in given], [ref(one) for one in tree_leaves(joined) if isinstance(one, Tensor)]
        if last is None or name == "forward":
            return
        before, inputs, outputs = last
        same, follows = (any(one is other() for one in given for other in others) for others in (inputs, outputs))
        if follows or (name != before and not same and any(one.is_floating_point() for one in given)):
            self.told = True
            warnings.warn(
                f"{before!r} and {name!r} are called one after the other in evaluation, where each call answers for all "
                "members together, so that what the second makes of the first one's outputs is not the ensemble of the "
                "networks; call both within a method of the target",
                stacklevel=4,
            )


def _alike(name: str, members: Any) -> bool:
    """Whether all members made the same, as a part that is not generated does."""
    leaves = [leaf for leaf in tree_leaves(members) if isinstance(leaf, Tensor)]
    if all(len(leaf) == 1 for leaf in leaves) or name == "forward":
        return all(len(leaf) == 1 for leaf in leaves)
    return all(torch.equal(leaf[0], leaf[1]) for leaf in leaves)


def _is_of_the_target(name: str) -> bool:
    """Whether a method sets modes or hooks, or reads buffers, which are those of all networks."""
    return name in changes.READ or (name.startswith("register_") and "hook" in name)


def _is_in(name: str, path: str) -> bool:
    """Whether a parameter is, or belongs to, what has a path."""
    return not path or name == path or name.startswith(f"{path}.")


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _refused(what: str, pattern: str) -> AttributeError:
    return AttributeError(
        f"{what} is generated, so every network has its own: read hypernet.population.weights in a training step, or keep it "
        f"as it is with exclude=[{pattern!r}]"
    )
