"""Copies of modules: what each copy has for itself, and what all of them share."""

from __future__ import annotations

import copy
import enum
import functools
import random
import types
import weakref
from collections import ChainMap, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

HOOKS = frozenset(name for name in vars(nn.Module()) if "hook" in name)
"""The attributes of every module that hold hooks."""
_CALLED = frozenset(name for name in HOOKS if name.startswith(("_forward", "_backward")))
_FIXED = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis), torch.dtype, torch.device, torch.Size,
    torch.layout, torch.memory_format, type, enum.Enum, types.FunctionType, types.BuiltinFunctionType, types.ModuleType,
    types.MethodWrapperType,
)  # fmt: skip
_FIXED_TYPES = frozenset(_FIXED)
_CONTAINERS = (list, dict, set, deque)
_RANDOM = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
_PROTOCOL = (
    "__reduce__",
    "__reduce_ex__",
    "__getstate__",
    "__setstate__",
    "__deepcopy__",
    "__getnewargs__",
    "__getnewargs_ex__",
)
_OUTSIDE = ("pytorch_lightning", "lightning", "lightning_fabric")


def is_fixed(value: Any) -> bool:
    """Whether a value never changes, so that all copies may share it."""
    return isinstance(value, _FIXED)


def all_fixed(values: Iterable[Any]) -> bool:
    """Whether none of the values ever changes, told by their types; cheap for many."""
    return _FIXED_TYPES.issuperset(map(type, values))


def is_outside(value: Any) -> bool:
    """Whether an object belongs to the world around the target: a Trainer, a logger, a source of random numbers."""
    if isinstance(value, _RANDOM):
        return True
    return not isinstance(value, (dict, list)) and type(value).__module__.partition(".")[0] in _OUTSIDE


def is_plain(value: Any) -> bool:
    """Whether an object is no more than its attributes."""
    cls = type(value)
    if getattr(cls, "__new__", None) is not object.__new__ or not hasattr(value, "__dict__"):
        return False
    return all(getattr(cls, name, None) is getattr(object, name, None) for name in _PROTOCOL)


def inside(value: Any) -> Iterator[tuple[Any, Any]]:
    """What a container or a plain object holds, each with its key, index or name; nothing for other values."""
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, (list, tuple, deque)):
        yield from enumerate(value)
    elif not isinstance(value, (nn.Module, Tensor)) and not is_fixed(value) and not is_outside(value) and is_plain(value):
        yield from getattr(value, "__dict__", {}).items()


class Copies:
    """Copies a module object by object; ``__deepcopy__`` of modules is passed over, that of other objects is not.

    Every copy has its own modules, containers, plain objects, buffers and other tensors. Shared are functions, hooks, modules
    that are not registered in the target, Lightning's objects, sources of random numbers, and what can't be copied.

    Args:
        root: The module.
        kind: ``"module"`` is independent of the root. ``"replica"`` shares parameters and the dictionaries of hooks as well, so
            that it costs its objects only.
        substitutes: For the identities of objects what takes their place; the copies are added.

    Attributes:
        module: The copy.
        pairs: Every module with its copy.
        tensors: Every tensor that is no parameter, with its copy.
        shared: Paths of what couldn't be copied.
        kept: Identities of what couldn't be copied.
        outside: Modules that are not the target's own, and sources of random numbers, that it refers to.

    Raises:
        ValueError: If the target holds a tensor that was computed from others, or a part that can't be copied at all.
    """

    def __init__(
        self,
        root: nn.Module,
        kind: Literal["module", "replica"],
        substitutes: MutableMapping[int, Any] | None = None,
    ) -> None:
        self.kind = kind
        self.shared: list[str] = []
        self.tensors: list[tuple[Tensor, Tensor]] = []
        self._memo: MutableMapping[int, Any] = {} if substitutes is None else substitutes
        self.kept: set[int] = set()
        self.outside: list[Any] = []
        self._alive: list[Any] = []
        self.pairs: list[tuple[nn.Module, nn.Module]] = []
        for module in root.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                self._memo[id(module)] = object.__new__(type(module))
                self.pairs.append((module, self._memo[id(module)]))
            elif id(module) not in self._memo:
                self._memo.update({id(part): part for part in module.modules()})
                self._memo[id(module)] = module if kind == "replica" else copy.deepcopy(module)
        paths = {id(module): path for path, module in root.named_modules()}
        with torch.inference_mode(False), torch.no_grad():
            hooks = [(twin, self._hook_twins(module)) for module, twin in self.pairs]
            for module, twin in self.pairs:
                self._fill(module, twin, paths[id(module)])
            for twin, dictionaries in hooks:
                self._hook_in(twin, dictionaries)
                if type(twin).__name__ == "OptimizedModule" and "_orig_mod" in twin._modules:
                    object.__setattr__(twin, "forward", twin._modules["_orig_mod"])  # what was compiled runs as it was written
        self.module: nn.Module = self._memo[id(root)]

    def _hook_twins(self, module: nn.Module) -> dict[str, tuple[Any, Any]]:
        """The dictionaries of hooks of a module with those of its copy, which may be the same."""
        found = {}
        for name in HOOKS if self.kind == "replica" else _CALLED:
            value = vars(module).get(name)
            own = type(value)() if self.kind == "module" and isinstance(value, dict) else value
            self._memo[id(value)] = own
            found[name] = (value, own)
        return found

    def _hook_in(self, twin: nn.Module, dictionaries: Mapping[str, tuple[Any, Any]]) -> None:
        """Give a copy its hooks: the same, but for methods of what was copied, which become those of the copies."""
        for name, (hooks, own) in dictionaries.items():
            if isinstance(hooks, dict):
                rebound = {key: _rebound(hook, self._memo) for key, hook in hooks.items()}
                if own is not hooks:
                    own.update(rebound)
                elif any(rebound[key] is not hook for key, hook in hooks.items()):
                    own = _Rebound(hooks, self._memo)
            object.__setattr__(twin, name, own)

    def _fill(self, module: nn.Module, twin: nn.Module, path: str) -> None:
        computed = computed_by_hooks(module)
        for name, value in attributes_of(module):
            where = f"{path}.{name}" if path else name
            if name in HOOKS and (self.kind == "replica" or name in _CALLED):
                continue
            if name in computed and isinstance(value, Tensor):
                object.__setattr__(twin, name, value.detach().clone())
            elif name == "_compiled_call_impl":
                object.__setattr__(twin, name, None)  # it calls the module that was compiled
            else:
                object.__setattr__(twin, name, self.of(value, where))

    def of(self, value: Any, path: str) -> Any:
        """The copy of a value; what was met before is copied once."""
        if id(value) in self._memo:
            return self._memo[id(value)]
        if isinstance(value, (nn.Module, *_RANDOM)):
            self.outside.append(value)
            return value
        if is_fixed(value) or is_outside(value):
            return value
        self._alive.append(value)
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if type(value) in (list, dict, OrderedDict, defaultdict, set, deque):
            return self._container(value, path)
        if isinstance(value, tuple) and (type(value) is tuple or hasattr(value, "_fields")):
            items = [self.of(item, f"{path}.{index}") for index, item in enumerate(value)]
            if all(one is other for one, other in zip(items, value, strict=True)):
                return value
            return tuple(items) if type(value) is tuple else type(value)(*items)
        if isinstance(value, weakref.ref):
            twin = self._memo.get(id(value()))
            return value if twin is None else weakref.ref(twin)
        if isinstance(value, types.MethodType):
            owner = self.of(value.__self__, path)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if isinstance(value, RemovableHandle):
            return self._handle(value)
        if type(value) in (weakref.WeakKeyDictionary, weakref.WeakSet):
            return self._weak(value, path)
        if type(value) is functools.partial:
            arguments, keywords = self.of(value.args, path), self.of(value.keywords, path)
            return functools.partial(self.of(value.func, path), *arguments, **keywords)
        if is_plain(value):
            twin = self._memo[id(value)] = object.__new__(type(value))
            for name, one in attributes_of(value):
                object.__setattr__(twin, name, self.of(one, f"{path}.{name}"))
            return twin
        return self._other(value, path)

    def mute(self) -> None:
        """Let no hook see the copy but those that compute its weights."""
        for _, twin in self.pairs:
            if not computed_by_hooks(twin):
                for name in _CALLED:
                    object.__setattr__(twin, name, OrderedDict() if getattr(twin, name) else getattr(twin, name))

    def later(self, value: Any, path: str) -> Any:
        """The copy of a value that was not there before; it is not remembered."""
        memo, alive = self._memo, self._alive
        self._memo, self._alive = ChainMap({}, memo), []
        try:
            with torch.inference_mode(False), torch.no_grad():
                return self.of(value, path)
        finally:
            self._memo, self._alive = memo, alive

    def _tensor(self, value: Tensor, path: str) -> Tensor:
        if isinstance(value, nn.Parameter) or (value.is_leaf and value.requires_grad):
            twin = value if self.kind == "replica" else self._deep(value)
        elif not value.is_leaf:
            raise ValueError(
                f"{path} is a tensor that was computed from others with gradients, which no copy can follow; compute it in "
                "forward, or keep it detached"
            )
        else:
            twin = value.clone() if value.is_inference() else self._deep(value)
            self.tensors.append((value, twin))
        self._memo[id(value)] = twin
        return twin

    def _container(self, value: Any, path: str) -> Any:
        if all_fixed(value) and (not isinstance(value, dict) or all_fixed(value.values())):
            twin = self._memo[id(value)] = copy.copy(value)
            return twin
        if isinstance(value, set):
            twin = self._memo[id(value)] = set()
            twin.update(self.of(one, path) for one in value)
            return twin
        if isinstance(value, dict):
            twin = self._memo[id(value)] = defaultdict(value.default_factory) if type(value) is defaultdict else type(value)()
            for key, one in value.items():
                twin[self.of(key, path)] = self.of(one, f"{path}.{key}")
            return twin
        twin = self._memo[id(value)] = deque(maxlen=value.maxlen) if isinstance(value, deque) else []
        twin.extend(self.of(one, f"{path}.{index}") for index, one in enumerate(value))
        return twin

    def _handle(self, handle: RemovableHandle) -> RemovableHandle:
        """A handle of a hook removes it from the copy."""
        twin = object.__new__(RemovableHandle)
        vars(twin).update(vars(handle))
        hooks = self._memo.get(id(handle.hooks_dict_ref()))
        if hooks is not None:
            twin.hooks_dict_ref = weakref.ref(hooks)
        return twin

    def _weak(self, value: Any, path: str) -> Any:
        if isinstance(value, weakref.WeakSet):
            return weakref.WeakSet(self._memo.get(id(one), one) for one in value)
        twin = self._memo[id(value)] = weakref.WeakKeyDictionary()
        for key, one in value.items():
            twin[self._memo.get(id(key), key)] = self.of(one, path)
        return twin

    def _deep(self, value: Any) -> Any:
        return copy.deepcopy(value, self._memo)  # type: ignore[arg-type]

    def _other(self, value: Any, path: str) -> Any:
        try:
            return self._deep(value)
        except Exception as error:
            if "deepcopy protocol" in str(error):
                raise ValueError(
                    f"{path} holds a tensor that was computed from others with gradients; keep it detached"
                ) from error
            self._memo[id(value)] = value
            self.kept.add(id(value))
            self.shared.append(f"{path} ({type(value).__name__})")
            return value


def computed_by_hooks(module: nn.Module) -> set[str]:
    """The attributes that old weight norm, old spectral norm and pruning compute before every call."""
    hooks = [one for one in module._forward_pre_hooks.values() if type(one).__module__.startswith("torch.nn.utils.")]
    return {name for hook in hooks for name in (getattr(hook, "name", None), getattr(hook, "_tensor_name", None)) if name}


def attributes_of(value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes that an object has itself, slots too."""
    yield from getattr(value, "__dict__", {}).items()
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def _rebound(hook: Any, twins: Mapping[int, Any]) -> Any:
    """A method of an object that was copied, or a partial of one, becomes that of its copy; all else stays."""
    if type(hook) is functools.partial:
        function = _rebound(hook.func, twins)
        return hook if function is hook.func else functools.partial(function, *hook.args, **hook.keywords)
    owner = twins.get(id(hook.__self__)) if isinstance(hook, types.MethodType) else None
    return hook if owner is None else types.MethodType(hook.__func__, owner)


class _Rebound(Mapping[int, Any]):
    """A view of a module's hooks in which methods of the target's modules are those of their copies."""

    def __init__(self, hooks: Mapping[int, Any], twins: Mapping[int, Any]) -> None:
        self._hooks, self._twins = hooks, twins

    def __getitem__(self, key: int) -> Any:
        return _rebound(self._hooks[key], self._twins)

    def __iter__(self) -> Iterator[int]:
        return iter(self._hooks)

    def __len__(self) -> int:
        return len(self._hooks)
