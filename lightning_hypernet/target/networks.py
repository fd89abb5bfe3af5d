"""Networks: weights and buffers of several networks of one target, in replicas of their own."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.target.replicas import Replica, Replicas, Tensors
from lightning_hypernet.target.state import State

ROUND = 64
"""Networks that hold replicas of their own at once, where none of them is needed for a backward pass."""


class Networks:
    """S networks of one target.

    `settings` are numbers that every network's modules have for themselves, such as dropout rates: for the path of a module and
    an attribute one number a network; to be set before the networks are first called.

    As long as something refers to them, the population that they were drawn in or the graph of what they returned, their
    replicas are theirs alone and keep their state. Then the replicas go back to the target's pool, without weights.

    Args:
        replicas: The target's replicas.
        weights: ``{name: (S, *shape)}`` for every generated parameter.
        buffers: ``{name: (S, *shape)}``, buffers that every network has for itself.
    """

    def __init__(self, replicas: Replicas, weights: Tensors, buffers: Tensors | None = None) -> None:
        self.weights = weights
        self.buffers = dict(buffers or {})
        self.settings: Mapping[tuple[str, str], Sequence[float]] = {}
        self.replicas = replicas
        self._changed: dict[str, Tensor] = {}
        self._held: list[Replica] = []
        self._rows: list[dict[str, Tensor]] = []
        self._cloned = False
        self._making = threading.Lock()

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    def __reduce__(self) -> Any:
        return Networks, (self.replicas, self.weights, self.buffers)

    def others(self, weights: Tensors, buffers: Tensors | None = None) -> Networks:
        """Other networks of the same target; tensors are ``{name: (S, *shape)}``."""
        return Networks(self.replicas, weights, buffers)

    def some(self, index: slice | Tensor) -> Networks:
        """Some of the networks, n of S, in replicas of their own."""
        others = self.others(
            {name: value[index] for name, value in self.weights.items()},
            {name: value[index] for name, value in self.buffers.items()},
        )
        places = torch.arange(len(self), device=index.device if isinstance(index, Tensor) else None)[index].tolist()
        others.settings = {key: [numbers[place] for place in places] for key, numbers in self.settings.items()}
        return others

    def at(self, index: int) -> tuple[Networks, int]:
        """The networks that one of them runs with, and its place among them."""
        return self, index

    @property
    def recorded(self) -> bool:
        """Whether the weights have gradients."""
        return any(value.requires_grad for value in self.weights.values())

    def hold(self, count: int) -> list[Replica]:
        """The replicas of the first networks; made and filled when they are first asked for.

        Args:
            count: How many.
        """
        habits = self.replicas.habits
        cloned = habits.writes_weights or habits.watch is not None
        if len(self._held) < count or (cloned and not self._cloned):
            with self._making, torch.inference_mode(False), torch.set_grad_enabled(self.recorded):
                self._fill(count, cloned)
        return self._held[:count]

    def _fill(self, count: int, cloned: bool) -> None:
        if not self._rows:
            weakref.finalize(self, self.replicas.give_back, self._held).atexit = False
        if not self._rows or (cloned and not self._cloned):
            self._rows = list(rows_of(self.weights, self.replicas.habits.weight))
            self._cloned = cloned
            for row, replica in zip(self._rows, self._held, strict=False):
                replica.install(row, {})
        missing = range(len(self._held), count)
        for index, replica in zip(missing, self.replicas.take(len(missing)), strict=True):
            replica.install(self._rows[index], self._own_of(index))
            for (path, name), numbers in self.settings.items():
                setattr(replica.module.get_submodule(path), name, numbers[index])
            self._held.append(replica)

    def settle(self, written: bool) -> None:
        """Without gradients, after a run that was watched: keep the weights themselves, or nothing that was written to."""
        if self._cloned and not self.recorded:
            with self._making, torch.inference_mode(False), torch.no_grad():
                self._rows, self._cloned = list(rows_of(self.weights)), False
                if written:
                    self.replicas.give_back(self._held)
                    self._held.clear()
                for row, replica in zip(self._rows, self._held, strict=False):
                    replica.install(row, {})

    def call(self, index: int, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call one of the networks that are held.

        Args:
            index: Which one.
            method: Which method or submodule of the target is called, or which property is read.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Raises:
            RuntimeError: If the run put other parameters in the place of generated ones.
        """
        replica, watch = self._held[index], self.replicas.habits.watch
        if watch is None:
            run = self.replicas.compiler(call, method == "forward")
            output = run(replica.module, method, args, kwargs)
        else:
            before = {name: value.clone() for name, value in replica.own_buffers().items()}
            state = State(replica.module)
            with watch:
                output = call(replica.module, method, args, kwargs)
            watch.keeps_state |= state.opaque or state.changed() or watch.wrote(replica.tensors)
            watch.writes_weights |= watch.wrote(self._rows[index].values())
            watch.compare(before, replica.buffers())
            watch.made.update(self.replicas.made_by(replica))
        replaced = replica.replaced(self._rows[index])
        if replaced:
            raise RuntimeError(
                f"{type(self.replicas.template).__name__} replaces the generated parameters {', '.join(replaced)} by new ones "
                "when it runs, which no generator trains; change their numbers in place, or keep them as they are with "
                f"exclude={replaced}"
            )
        return output

    def follow(self) -> None:
        """Take over the modes that the target's modules have now."""
        modes = self.replicas.modes
        for replica in self._held:
            replica.follow(modes)

    def give(self, buffers: Tensors) -> None:
        """Give every network buffers of its own, ``{name: (S, *shape)}``."""
        self.buffers = dict(buffers)
        for index, replica in enumerate(self._held):
            replica.install({}, self._own_of(index))

    def stacked_buffers(self, names: Collection[str]) -> dict[str, Tensor]:
        """Buffers of all networks as they are now, ``{name: (S, *shape)}``: those that are named, and those given."""
        held = [replica.buffers() for replica in self._held]
        stacked = {}
        for name in dict.fromkeys((*self.buffers, *names)):
            value = self._changed.get(name, self.buffers.get(name))
            if value is None:
                own = self.replicas.template.get_buffer(name)
                value = own.expand(len(self), *own.shape)
            stacked[name] = torch.stack([*(one[name] for one in held), *value[len(held) :].unbind(0)])
        return stacked

    def keep_buffers(self, stacked: Tensors) -> None:
        """Take over what the first networks made of buffers: ``{name: (n, *shape)}``."""
        if not stacked:
            return
        whole = self.stacked_buffers(list(stacked))
        for name, value in stacked.items():
            self._changed[name] = torch.cat([value, whole[name][len(value) :]])
        for index, replica in enumerate(self._held):
            replica.install({}, {name: value[index].clone() for name, value in self._changed.items()})

    def _own_of(self, index: int) -> dict[str, Tensor]:
        """The buffers of one network."""
        return {name: value[index].clone() for name, value in {**self.buffers, **self._changed}.items()}


def call(module: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a module, or a method or submodule of it by its path; a property is read."""
    called = module
    if method != "forward":
        for name in method.split("."):
            called = getattr(called, name)
    return called(*args, **kwargs) if callable(called) else called


def rows_of(weights: Tensors, change: Callable[[Tensor], Tensor] = lambda weight: weight) -> Iterator[dict[str, Tensor]]:
    """The weights of one network after the other; unbind, since the backward of an index writes a tensor of zeros.

    Args:
        weights: ``{name: (S, *shape)}``.
        change: What is done to every weight.
    """
    for row in zip(*(value.unbind(0) for value in weights.values()), strict=True):
        yield {name: change(value) for name, value in zip(weights, row, strict=True)}
