"""Habits: what a target does to what it is given, seen when it first runs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_hypernet.target.averages import differ
from lightning_hypernet.target.places import memory_of, unreachable


class Watch(TorchDispatchMode):
    """Within, sees every operation: which tensors are written to, views and ``.data`` too, and which parameters are read.

    Args:
        own: The target's own parameters, by name, that are generated: whoever reads them reads past the networks' weights.
    """

    def __init__(self, own: Mapping[str, weakref.ref[Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # held while it watches: the memory of a parameter that goes in between would be somebody else's
        self._alive = {name: reference() for name, reference in own.items()}
        self._own = {memory_of(one): name for name, one in self._alive.items() if one is not None}
        self._own.pop(None, None)
        self._written: set[int | None] = set()
        self.weights: list[Tensor] = []
        self.inputs: list[Tensor] = []
        self.changed: set[str] = set()
        self.made: set[str] = set()
        self.writes_weights = False
        self.keeps_state = False
        self.batchable = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        kwargs = kwargs or {}
        schema = func._schema
        for index, argument in enumerate(schema.arguments):
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            some = value if isinstance(value, (list, tuple)) else (value,)
            memory = [memory_of(one) for one in some if isinstance(one, Tensor)]
            read = [self._own[one] for one in memory if one in self._own]
            if read:
                raise unreachable(read)
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._written.update(memory)
            if argument.name == "padding_idx" and value is not None and value >= 0:
                self.batchable = False  # torch's batching rule forgets it in the backward pass
        return func(*args, **kwargs)

    def wrote(self, tensors: Iterable[Tensor]) -> bool:
        """Whether any of these was written to."""
        return not self._written.isdisjoint({memory_of(tensor) for tensor in tensors} - {None})

    def compare(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        """Note the buffers that are other than before: in shape, type or numbers."""
        for name, value in after.items():
            if differ(before.get(name), value):
                self.changed.add(name)


@dataclass
class Habits:
    """What runs of a target were seen to do.

    Attributes:
        seen: For every kind of run that has been watched once the buffers that it changes.
        late: Buffers that were seen to change later.
        expected: Buffers that a file says training changes.
        writes_weights: Whether runs write to weights, as clamping does and embeddings with ``max_norm``.
        writes_inputs: Whether they write to their inputs.
        keeps_state: Whether they change attributes, containers, plain objects or tensors of the target that are no buffers.
        batchable: Whether nothing was seen that vmap would compute wrongly.
        told: Whether the user was told what can't be copied.
        watch: What watches the present run; None: all kinds that run now have been seen.
    """

    seen: dict[tuple[Any, ...], frozenset[str]] = field(default_factory=dict)
    late: frozenset[str] = frozenset()
    expected: frozenset[str] = frozenset()
    writes_weights: bool = False
    writes_inputs: bool = False
    keeps_state: bool = False
    batchable: bool = True
    told: bool = False
    watch: Watch | None = None

    @property
    def changing(self) -> frozenset[str] | None:
        """Names of the buffers that runs change; None before the first run."""
        return self.late.union(*self.seen.values()) if self.seen else None

    @property
    def changed_in_training(self) -> frozenset[str]:
        """Names of the buffers that runs change where a module is in training mode."""
        return self.late.union(self.expected, *(names for run, names in self.seen.items() if any(run[1:])))

    @property
    def trained(self) -> bool:
        """Whether a run was watched with a module in training mode."""
        return any(any(run[1:]) for run in self.seen)

    def weight(self, weight: Tensor) -> Tensor:
        """A weight as a network gets it: a clone if it may be written to."""
        if self.watch is None and not self.writes_weights:
            return weight
        clone = weight.clone()
        if self.watch is not None:
            self.watch.weights.append(clone)
        return clone

    def input(self, leaf: Any) -> Any:
        """An input as a network gets it: a clone if it may be written to."""
        if not isinstance(leaf, Tensor) or (self.watch is None and not self.writes_inputs):
            return leaf
        clone = leaf.clone()
        if self.watch is not None:
            self.watch.inputs.append(clone)
        return clone

    def learn(self, run: tuple[Any, ...], watch: Watch) -> None:
        """Take over what was seen of a kind of run."""
        self.writes_weights |= watch.writes_weights or watch.wrote(watch.weights)
        self.writes_inputs |= watch.wrote(watch.inputs)
        self.keeps_state |= watch.keeps_state
        self.batchable &= watch.batchable
        self.seen[run] = frozenset(watch.changed)


def check_reach(outputs: Iterable[Tensor], own: Mapping[str, weakref.ref[Tensor]]) -> None:
    """Stop if the graph of outputs holds parameters that should have been generated.

    Args:
        outputs: Outputs.
        own: The target's own parameters, by name, that are generated.

    Raises:
        RuntimeError: If it does; the message names them.
    """
    alive = {name: reference() for name, reference in own.items()}
    names = {id(one): name for name, one in alive.items() if one is not None}
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
