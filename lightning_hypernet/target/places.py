"""Places: where a target keeps its generated parameters."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_hypernet.target.copies import HOOKS, all_fixed, computed_by_hooks, inside


class Placeholder:
    """Stands where a generated parameter stood, in what no network's weights are put into; whoever uses it is told.

    Args:
        parameter: Name of the parameter.
    """

    def __init__(self, parameter: str) -> None:
        self._parameter = parameter

    def __repr__(self) -> str:
        return f"Placeholder({self._parameter!r})"

    def __reduce__(self) -> Any:
        return Placeholder, (self._parameter,)

    def __getattr__(self, name: str) -> Any:
        """Fail."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise unreachable([self._parameter])

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise unreachable([one._parameter for one in (*args, *(kwargs or {}).values()) if isinstance(one, cls)])


def unreachable(parameters: Sequence[str]) -> RuntimeError:
    """The error of generated parameters that are used where no network's weights can be put."""
    names = list(parameters)
    return RuntimeError(
        f"the generated parameters {', '.join(names)} are read other than from the module that has them: through a function "
        "that holds the module, such as a lambda over self, a patched method or a hook, or from a tuple. There all networks "
        f"would read the same numbers. Read them from their module in forward, or keep them as they are with exclude={names}"
    )


@dataclass(frozen=True)
class Place:
    """Where a generated parameter is kept.

    Args:
        parameter: Name of the parameter.
        module: Path of the module.
        steps: The attribute of the module, then the keys of the containers and the attributes of the objects inside of it.
    """

    parameter: str
    module: str
    steps: tuple[Any, ...]

    def holder(self, root: nn.Module) -> tuple[Any, Any]:
        """The container of a copy of the target that holds the parameter, and its key there."""
        found: Any = vars(root.get_submodule(self.module))
        for step in self.steps[:-1]:
            held = found[step]
            found = held if isinstance(held, (dict, list, deque)) else vars(held)
        return found, self.steps[-1]


@contextmanager
def filled(
    root: nn.Module, places: Sequence[Place], tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None = None
) -> Iterator[Callable[[], list[str]]]:
    """Within, tensors stand in the places of the target itself; nothing else may run with it meanwhile.

    Args:
        root: The target without its generated parameters.
        places: Its places.
        tensors: What is put there, by the names of the parameters.
        buffers: What takes the place of its buffers, by their names.

    Yields:
        A function that names the parameters in whose places something else stands.
    """
    put = [(*place.holder(root), tensors[place.parameter]) for place in places]
    for name, value in by_all_names(dict(root.named_buffers(remove_duplicate=False)), buffers or {}).items():
        path, _, key = name.rpartition(".")
        put.append((root.get_submodule(path)._buffers, key, value))
    before = [holder[key] for holder, key, _ in put]
    for holder, key, value in put:
        holder[key] = value
    try:
        pairs = list(zip(places, put, strict=False))
        yield lambda: [place.parameter for place, (holder, key, value) in pairs if _at(holder, key) is not value]
    finally:
        for (holder, key, _), held in zip(put, before, strict=True):
            with suppress(IndexError):
                holder[key] = held


def put_buffers(root: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Let a module have these buffers, by their names."""
    for name, value in by_all_names(dict(root.named_buffers(remove_duplicate=False)), buffers).items():
        path, _, key = name.rpartition(".")
        root.get_submodule(path)._buffers[key] = value


def by_all_names(held: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that take the place of some that are held, by every name of those."""
    values = {id(held[name]): value for name, value in given.items() if name in held}
    return {name: values[id(one)] for name, one in held.items() if id(one) in values} | dict(given)


def _at(holder: Any, key: Any) -> Any:
    try:
        return holder[key]
    except LookupError:
        return None


def find_places(target: nn.Module, generated: Mapping[str, Tensor]) -> list[Place]:
    """Look up every place of generated parameters: in dictionaries, lists and plain objects of the target's modules.

    Args:
        target: The target with its own parameters.
        generated: The generated parameters, by name.

    Returns:
        The places.

    Raises:
        ValueError: If another tensor of the target shares the memory of a generated parameter.
    """
    names = {id(parameter): name for name, parameter in generated.items()}
    memory = {memory_of(parameter): name for name, parameter in generated.items() if memory_of(parameter) is not None}
    places, aliases = [], []
    seen: set[int] = set()
    for path, module in target.named_modules():
        passed = HOOKS | computed_by_hooks(module)
        own = {name: value for name, value in vars(module).items() if name not in passed}
        for steps, value in _tensors(own, seen):
            if id(value) in names:
                places.append(Place(names[id(value)], path, steps))
            elif value.is_leaf and memory_of(value) in memory and not isinstance(value, nn.Parameter):
                aliases.append(f"{'.'.join(map(str, (*([path] if path else []), *steps)))} (of {memory[memory_of(value)]})")
    if aliases:
        raise ValueError(
            f"{', '.join(aliases)} in {type(target).__name__} share the memory of generated parameters, of which every network "
            "has its own; keep a clone, or exclude the parameters"
        )
    return places


def _tensors(holder: Any, seen: set[int], steps: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """Every tensor in what a module holds, with the steps to it; tuples, which can't be filled anew, are passed over."""
    for step, value in inside(holder):
        if isinstance(value, Tensor):
            yield (*steps, step), value
        elif id(value) not in seen and not isinstance(value, (nn.Module, tuple)):
            seen.add(id(value))
            if not (isinstance(value, (dict, list, deque)) and all_fixed(value.values() if isinstance(value, dict) else value)):
                yield from _tensors(value, seen, (*steps, step))


def memory_of(tensor: Tensor) -> int | None:
    """Where a tensor's numbers lie; None for what has no memory."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None
