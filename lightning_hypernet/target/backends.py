"""Backends: the ways of running many networks."""

from __future__ import annotations

import operator
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.networks import Networks


class Backend(ABC):
    """A way of running many networks. The numbers are the same whichever is taken; only time and memory differ."""

    @abstractmethod
    def run(
        self, networks: Networks, arguments: Arguments, method: str = "forward", chunk_size: int | None = None
    ) -> list[Any]:
        """Call the target once with every network.

        Args:
            networks: S networks.
            arguments: The arguments of the call, shared by all networks or dealt out to them.
            method: Which method or submodule of the target is called, or which property is read.
            chunk_size: Networks that run at once, for backends that run several.

        Returns:
            The output of every network that got a part of the arguments.
        """


class Loop(Backend):
    """One network after the other, each in a replica of its own."""

    def run(
        self, networks: Networks, arguments: Arguments, method: str = "forward", chunk_size: int | None = None
    ) -> list[Any]:
        """Call the target once with every network."""
        replicas, habits = networks.replicas, networks.replicas.habits
        count = arguments.parts or len(networks)
        outputs = []
        with checkpoints_not_reentrant() if networks.recorded else nullcontext():
            for index, replica in enumerate(networks.hold(count, habits.writes_weights)):
                args, kwargs = arguments.of(index, cloned=habits.writes_inputs)
                outputs.append(call(replica.module, method, args, kwargs))
                networks.check(index)
        replicas.check_shared()
        return outputs


class Vmap(Backend):
    """All networks at once, by `torch.func.vmap`; for layers and shapes that it can batch."""

    def run(
        self, networks: Networks, arguments: Arguments, method: str = "forward", chunk_size: int | None = None
    ) -> list[Any]:
        """Call the target once with every network."""
        replicas, habits = networks.replicas, networks.replicas.habits
        count = arguments.parts or len(networks)
        weights = {name: value[:count] for name, value in networks.weights.items()}
        if habits.writes_weights:
            weights = {name: value.clone() for name, value in weights.items()}
        stacked = {name: value[:count] for name, value in networks.stacked_buffers(habits.changing or frozenset()).items()}
        leaves = arguments.stacked()
        if habits.writes_inputs:
            leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        structure: list[Any] = []
        (replica,) = taken = replicas.take(1)

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], leaves: list[Any]) -> Any:
            replica.install(weights, buffers)
            args, kwargs = arguments.restore(leaves)
            flat, spec = tree_flatten(call(replica.module, method, args, kwargs))
            structure[:] = [flat, spec]
            after = replica.buffers()
            return [leaf for leaf in flat if isinstance(leaf, Tensor)], {name: after[name] for name in buffers}

        axes = [None if axis is None else 0 for axis in arguments.axes]
        try:
            mapped = torch.func.vmap(one, in_dims=(0, 0, axes), randomness="different", chunk_size=chunk_size)
            tensors, after = mapped(weights, stacked, leaves)
        finally:
            replicas.give_back(taken)
        networks.keep_buffers(
            {
                name: value.detach()
                for name, value in after.items()
                if name in habits.seen.get(replicas.run_of(method), frozenset())
            }
        )
        columns = [column.unbind(0) for column in tensors]
        flat, spec = structure
        outputs = []
        for index in range(count):
            row = iter([column[index] for column in columns])
            outputs.append(tree_unflatten([next(row) if isinstance(leaf, Tensor) else leaf for leaf in flat], spec))
        return outputs


BACKENDS: dict[str, Backend] = {"loop": Loop(), "vmap": Vmap()}


def call(module: nn.Module, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a module, or a method or submodule of it by its path; a property is read."""
    called = module if method == "forward" else operator.attrgetter(method)(module)
    return called(*args, **kwargs) if callable(called) else called


class _Recomputed(torch.utils.checkpoint.CheckpointFunction):
    """Takes the place of torch's re-entrant activation checkpoints, which walk the generator's graph once a checkpoint."""

    running = threading.local()
    users = 0
    swapping = threading.Lock()
    original = torch.utils.checkpoint.CheckpointFunction

    @classmethod
    def apply(cls, function: Any, preserve: bool, *args: Any) -> Any:
        """Checkpoint a function without re-entry, in threads that run networks."""
        if not getattr(cls.running, "networks", False):
            return cls.original.apply(function, preserve, *args)
        return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve)


@contextmanager
def checkpoints_not_reentrant() -> Iterator[None]:
    """Within, activation checkpoints of this thread keep to one backward pass, whichever kind the target asks for."""
    before = getattr(_Recomputed.running, "networks", False)
    with _Recomputed.swapping:
        _Recomputed.users += 1
        torch.utils.checkpoint.CheckpointFunction = _Recomputed  # type: ignore[misc]
    _Recomputed.running.networks = True
    try:
        yield
    finally:
        _Recomputed.running.networks = before
        with _Recomputed.swapping:
            _Recomputed.users -= 1
            if not _Recomputed.users:
                torch.utils.checkpoint.CheckpointFunction = _Recomputed.original  # type: ignore[misc]
