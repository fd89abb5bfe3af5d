"""Networks: weights and buffers of several networks of one target, in replicas of their own."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.target.replicas import Replica, Replicas, Tensors

ROUND = 64
"""Networks that hold replicas of their own at once, where none of them is needed for a backward pass."""


class Networks:
    """S networks of one target.

    As long as somebody refers to them, the population that they were drawn in or the graph of what they returned, their
    replicas are theirs alone and keep their state. Then the replicas go back to the target's pool, without weights.

    Args:
        replicas: The target's replicas.
        weights: ``{name: (S, *shape)}`` for every generated parameter.
        buffers: ``{name: (S, *shape)}``, buffers that every network has for itself.
    """

    def __init__(self, replicas: Replicas, weights: Tensors, buffers: Tensors | None = None) -> None:
        self.weights = weights
        self.buffers = dict(buffers or {})
        self.replicas = replicas
        self._changed: dict[str, Tensor] = {}
        self._held: list[Replica] = []
        self._rows: list[dict[str, Tensor]] = []
        self._making = threading.Lock()

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    def __reduce__(self) -> Any:
        return Networks, (self.replicas, self.weights, self.buffers)

    def others(self, weights: Tensors, buffers: Tensors | None = None) -> Networks:
        """Other networks of the same target."""
        return Networks(self.replicas, weights, buffers)

    def some(self, index: slice | Tensor) -> Networks:
        """Some of the networks, in replicas of their own."""
        return self.others(
            {name: value[index] for name, value in self.weights.items()},
            {name: value[index] for name, value in self.buffers.items()},
        )

    def hold(self, count: int, cloned: bool = False) -> list[Replica]:
        """The replicas of the first networks; made and filled when they are first asked for.

        Args:
            count: How many.
            cloned: Put clones of the weights in, since the target may write to them.
        """
        if len(self._held) < count:
            with self._making, torch.inference_mode(False), torch.set_grad_enabled(self.recorded):
                self._fill(count, cloned)
        return self._held[:count]

    @property
    def recorded(self) -> bool:
        """Whether the weights have gradients."""
        return any(value.requires_grad for value in self.weights.values())

    def _fill(self, count: int, cloned: bool) -> None:
        if not self._rows:
            self._rows = list(rows_of(self.weights, cloned))
            weakref.finalize(self, self.replicas.give_back, self._held).atexit = False
        missing = range(len(self._held), count)
        for index, replica in zip(missing, self.replicas.take(len(missing)), strict=True):
            replica.install(self._rows[index], self._own_of(index))
            self._held.append(replica)

    def row(self, index: int) -> dict[str, Tensor]:
        """The weights of one network, as they were put into its replica."""
        return self._rows[index]

    def check(self, index: int) -> None:
        """See that a network's run left the generated parameters where they were.

        Raises:
            RuntimeError: If it put others in their place.
        """
        replaced = self._held[index].replaced(self._rows[index])
        if replaced:
            raise RuntimeError(
                f"{type(self.replicas.template).__name__} replaces the generated parameters {', '.join(replaced)} by new ones "
                "when it runs, which no generator trains; change their numbers in place, or keep them as they are with "
                f"exclude={replaced}"
            )

    def follow(self) -> None:
        """Take over the modes that the target's modules have now."""
        modes = self.replicas.modes
        for replica in self._held:
            replica.follow(modes)

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
        whole = self.stacked_buffers(list(stacked))
        for name, value in stacked.items():
            self._changed[name] = torch.cat([value, whole[name][len(value) :]])
        for index, replica in enumerate(self._held):
            replica.install({}, self._own_of(index))

    def _own_of(self, index: int) -> dict[str, Tensor]:
        """The buffers of one network."""
        return {name: value[index].clone() for name, value in {**self.buffers, **self._changed}.items()}


def rows_of(weights: Tensors, cloned: bool = False) -> Iterator[dict[str, Tensor]]:
    """The weights of one network after the other; unbind, since the backward of an index writes a tensor of zeros."""
    for row in zip(*(value.unbind(0) for value in weights.values()), strict=True):
        yield {name: value.clone() if cloned else value for name, value in zip(weights, row, strict=True)}
