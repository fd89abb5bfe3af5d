"""Habits: what a target does to what it is given, seen when it first runs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_hypernet.target.places import memory_of, unreachable


@dataclass
class Habits:
    """What runs of a target were seen to do.

    Attributes:
        seen: For every method, with the modes of all modules, that has run once, the buffers that it changed.
        writes_weights: Whether one writes to weights, as clamping does and embeddings with ``max_norm``.
        writes_inputs: Whether one writes to its inputs.
        keeps_state: Whether one changes attributes, containers or plain objects of the target.
        told: Whether the user was told what can't be copied.
    """

    seen: dict[tuple[Any, ...], frozenset[str]] = field(default_factory=dict)
    writes_weights: bool = False
    writes_inputs: bool = False
    keeps_state: bool = False
    told: bool = False

    @property
    def changing(self) -> frozenset[str] | None:
        """Names of the buffers that runs change; None before the first run."""
        return frozenset().union(*self.seen.values()) if self.seen else None


class Writes(TorchDispatchMode):
    """Within, notes the memory of every tensor that an operation writes to, views and ``.data`` too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._written: set[int | None] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for index, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    value = args[index] if index < len(args) else kwargs.get(argument.name)
                    some = value if isinstance(value, (list, tuple)) else (value,)
                    self._written.update(memory_of(one) for one in some if isinstance(one, Tensor))
        return func(*args, **kwargs)

    def to(self, tensors: Iterable[Tensor]) -> bool:
        """Whether any of these was written to."""
        return not self._written.isdisjoint({memory_of(tensor) for tensor in tensors} - {None})


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> frozenset[str]:
    """Names of the tensors that are other than before: in shape, type or numbers."""

    def same(one: Tensor, other: Tensor) -> bool:
        return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))

    return frozenset(name for name, value in after.items() if name not in before or not same(value, before[name]))


def check_reach(outputs: Iterable[Tensor], own: Mapping[str, weakref.ref[Tensor]]) -> None:
    """Stop if the graph of outputs holds parameters that should have been generated.

    Args:
        outputs: Outputs.
        own: The target's own parameters, by name, that are generated.

    Raises:
        RuntimeError: If it does; the message names them.
    """
    names = {id(reference()): name for name, reference in own.items() if reference() is not None}
    found: set[str] = set()
    nodes: list[Any] = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        found.update(names[key] for key in [id(getattr(node, "variable", None))] if key in names)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    if found:
        raise unreachable(sorted(found))
