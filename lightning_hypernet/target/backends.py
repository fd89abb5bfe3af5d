"""Backends: the ways of running many networks."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lightning_hypernet.markers import hookimpl
from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.batched import chain_of, run_chain
from lightning_hypernet.target.blocked import blocks_of, channels_first, channels_last, has_images, may_block, put_together
from lightning_hypernet.target.networks import Networks, call
from lightning_hypernet.target.replicas import Replicas
from lightning_hypernet.target.state import State


class Backend(ABC):
    """A way of running many networks. The numbers are the same whichever is taken; only time and memory differ.

    A backend takes replicas from the networks (`Networks.hold`) and calls them through `Networks.call`, which sees what a
    target does when it first runs. What it can't run it leaves to the loop by raising.
    """

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

    def takes(self, arguments: Arguments) -> bool:
        """Whether it runs calls of such arguments; the loop runs the others."""
        return True

    def fits(self, replicas: Replicas, arguments: Arguments, method: str = "forward") -> bool:
        """Whether it may run a target with such arguments, as far as that can be told before."""
        return self.takes(arguments)


class Loop(Backend):
    """One network after the other, each in a replica of its own."""

    def run(
        self, networks: Networks, arguments: Arguments, method: str = "forward", chunk_size: int | None = None
    ) -> list[Any]:
        """Call the target once with every network."""
        replicas = networks.replicas
        shared = replicas.shared_versions()
        indices = range(arguments.parts or len(networks)) if arguments.only is None else [arguments.only]
        networks.hold(indices[-1] + 1)
        outputs = []
        with checkpoints_not_reentrant() if networks.recorded else nullcontext():
            for index in indices:
                args, kwargs = arguments.of(index, replicas.habits.input)
                outputs.append(networks.call(index, method, args, kwargs))
        replicas.check_shared(shared)
        return outputs


class AtOnce(Backend):
    """Runs all networks at once."""

    def takes(self, arguments: Arguments) -> bool:
        """Whether all networks get equally much, and there are several."""
        return arguments.even and arguments.parts != 1


class Vmap(AtOnce):
    """All networks at once, by `torch.func.vmap`; for layers and shapes that it can batch."""

    def fits(self, replicas: Replicas, arguments: Arguments, method: str = "forward") -> bool:
        """Whether nothing was seen of the target that vmap would compute wrongly, and nothing is compiled, which it isn't."""
        return self.takes(arguments) and replicas.habits.batchable and not is_cast() and replicas.compiler.options is None

    def run(
        self, networks: Networks, arguments: Arguments, method: str = "forward", chunk_size: int | None = None
    ) -> list[Any]:
        """Call the target once with every network.

        Raises:
            RuntimeError: If vmap can't run the target, or what it does there would not be right.
        """
        replicas, habits = networks.replicas, networks.replicas.habits
        if habits.keeps_state:
            raise RuntimeError("it keeps state of its own from one call to the next")
        if is_cast():
            raise RuntimeError("torch's vmap leaves autocast out")
        count = arguments.parts or len(networks)
        weights = {name: habits.weight(value[:count]) for name, value in networks.weights.items()}
        leaves = [habits.input(leaf) for leaf in arguments.stacked()]
        structure: list[Any] = []
        if torch.is_grad_enabled() and _has_backward_hooks(replicas.template):
            raise RuntimeError("vmap does not call its backward hooks")
        (replica,) = taken = replicas.take(1)
        watch = habits.watch
        names = replica.own_buffers() if watch is not None else habits.changing or frozenset()
        stacked = {name: value[:count] for name, value in networks.stacked_buffers(list(names)).items()}
        before = {name: value.clone() for name, value in stacked.items()}

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], leaves: list[Any]) -> Any:
            replica.install(weights, buffers)
            state = State(replica.module) if watch is not None else None
            args, kwargs = arguments.restore(leaves)
            flat, spec = tree_flatten(call(replica.module, method, args, kwargs))
            structure[:] = [flat, spec, state is not None and (state.opaque or state.changed())]
            after = replica.buffers()
            return [leaf for leaf in flat if isinstance(leaf, Tensor)], {name: after[name] for name in buffers}

        axes = arguments.mapped
        try:
            mapped = torch.func.vmap(one, in_dims=(0, 0, axes), randomness="different", chunk_size=chunk_size)
            with watch or nullcontext(), torch.autograd.graph.disable_saved_tensors_hooks("it checkpoints its activations"):
                tensors, after = mapped(weights, stacked, leaves)
            if watch is not None:
                watch.compare(before, {name: value.detach() for name, value in after.items()})
                watch.keeps_state |= watch.wrote(replica.tensors)
                watch.made.update(replicas.made_by(replica))
        finally:
            replicas.give_back(taken)
        flat, spec, keeps_state = structure
        if keeps_state or habits.keeps_state or (watch is not None and watch.keeps_state):
            raise RuntimeError("it keeps state of its own from one call to the next")
        if not (habits.batchable and (watch is None or watch.batchable)):
            raise RuntimeError("torch's vmap forgets the padding of its embeddings in the backward pass")
        changing = watch.changed if watch is not None else habits.seen.get(replicas.run_of(method), frozenset())
        networks.keep_buffers({name: value.detach() for name, value in after.items() if name in changing})
        columns = [column.unbind(0) for column in tensors]
        outputs = []
        for index in range(count):
            row = iter([column[index] for column in columns])
            outputs.append(tree_unflatten([next(row) if isinstance(leaf, Tensor) else leaf for leaf in flat], spec))
        return outputs


class Batched(AtOnce):
    """All networks at once, layer by layer, by batched products of matrices; for chains of linear and elementwise layers."""

    def fits(self, replicas: Replicas, arguments: Arguments, method: str = "forward") -> bool:
        """Whether the target is such a chain."""
        try:
            return self.takes(arguments) and bool(chain_of(replicas, method))
        except RuntimeError:
            return False

    def run(
        self, networks: Networks, arguments: Arguments, method: str = "forward", chunk_size: int | None = None
    ) -> list[Any]:
        """Call the target once with every network.

        Raises:
            RuntimeError: If the target is no such chain.
        """
        if chunk_size is None or arguments.parts or chunk_size >= len(networks):
            return list(run_chain(networks, arguments, method).unbind(0))
        pieces = [slice(start, start + chunk_size) for start in range(0, len(networks), chunk_size)]
        return [one for piece in pieces for one in run_chain(networks.some(piece), arguments, method).unbind(0)]


class Blocked(Backend):
    """The loop, over images with their channels last and, where nothing trains, over blocks of examples.

    Blocks are for targets that make of an example the same whatever others are in the batch.
    """

    def fits(self, replicas: Replicas, arguments: Arguments, method: str = "forward") -> bool:
        """Whether there are images, or blocks."""
        return has_images(replicas.template, arguments) or may_block(replicas.template, arguments)

    def run(
        self, networks: Networks, arguments: Arguments, method: str = "forward", chunk_size: int | None = None
    ) -> list[Any]:
        """Call the target once with every network and block.

        Raises:
            RuntimeError: If there are blocks, and the outputs do not follow the batch.
        """
        habits, replicas = networks.replicas.habits, networks.replicas
        whole = habits.keeps_state or bool(habits.seen.get(replicas.run_of(method)))  # state or buffers count the calls
        images = has_images(replicas.template, arguments)
        if images:
            arguments = arguments.changed(channels_last)
        if habits.watch is not None or whole or not may_block(replicas.template, arguments):
            outputs = Loop().run(networks, arguments, method)
            return [tree_map(channels_first, one) for one in outputs] if images else outputs
        blocks = blocks_of(arguments)
        parts: list[list[Any]] = [[] for _ in range(len(networks))]
        for index, found in enumerate(parts):
            networks.hold(index + 1)
            for block in blocks:
                args, kwargs = block.of(index, habits.input)
                found.append(networks.call(index, method, args, kwargs))
        outputs = [put_together(found, blocks) for found in parts]
        return [tree_map(channels_first, one) for one in outputs] if images else outputs


def is_cast() -> bool:
    """Whether operations run in other types than their inputs have, as under `torch.autocast`."""
    return any(torch.is_autocast_enabled(one) for one in ("cpu", "cuda"))


def _has_backward_hooks(target: nn.Module) -> bool:
    """Whether modules of a target, or all modules there are, have hooks that are called in the backward pass."""
    everywhere = torch.nn.modules.module
    if everywhere._global_backward_hooks or everywhere._global_backward_pre_hooks:
        return True
    return any(one._backward_hooks or one._backward_pre_hooks for one in target.modules())


BACKENDS: dict[str, Backend] = {"loop": Loop(), "vmap": Vmap(), "batched": Batched(), "blocked": Blocked()}
"""The backends that ``"auto"`` chooses from."""


@hookimpl
def hypernet_register_backends(register: Callable[[str, type[Backend]], None]) -> None:
    """Register the built-in backends."""
    register("loop", Loop)
    register("vmap", Vmap)
    register("batched", Batched)
    register("blocked", Blocked)


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
