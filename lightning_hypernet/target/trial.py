"""Trial: a call beside the real one, of which nobody sees anything."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.backends import BACKENDS, call
from lightning_hypernet.target.habits import Writes, changed
from lightning_hypernet.target.networks import Networks
from lightning_hypernet.target.state import State


class Trial:
    """The same inputs and weights as a call has, in replicas aside: hooks, random numbers, buffers and graphs are left alone.

    Args:
        networks: The networks of the call.
        arguments: Its arguments.
        method: Which method of the target it calls.
    """

    def __init__(self, networks: Networks, arguments: Arguments, method: str) -> None:
        self.count = arguments.parts or len(networks)
        self.device = next(iter(networks.weights.values())).device
        self._method, self._arguments = method, arguments.detached()
        self._backward = torch.is_grad_enabled() and networks.recorded
        self._weights = {name: value[: self.count].detach() for name, value in networks.weights.items()}
        self._given = {name: value[: self.count] for name, value in networks.buffers.items()}
        self._replicas = networks.replicas.aside()

    def _networks(self, count: int) -> Networks:
        weights = {name: value[:count].clone().requires_grad_(self._backward) for name, value in self._weights.items()}
        return Networks(self._replicas, weights, {name: value[:count] for name, value in self._given.items()})

    def watch(self) -> None:
        """Run the first network, and note what it does to weights, inputs, buffers and state in the target's habits."""
        habits = self._replicas.habits
        with self._aside():
            networks = self._networks(1)
            (replica,) = networks.hold(1, cloned=True)
            before = {name: value.clone() for name, value in replica.own_buffers().items()}
            state = State(replica.module)
            args, kwargs = self._arguments.of(0, cloned=True)
            with Writes() as writes:
                call(replica.module, self._method, args, kwargs)
            habits.keeps_state |= state.changed()
            habits.writes_weights |= writes.to(networks.row(0).values())
            habits.writes_inputs |= writes.to(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            habits.seen[self._replicas.run_of(self._method)] = changed(before, replica.buffers())

    def seconds(self, name: str) -> float:
        """How long one backend takes, forward and, with gradients, backward."""
        with self._aside():
            networks = self._networks(self.count)
            networks.hold(self.count if name == "loop" else 0, self._replicas.habits.writes_weights)
            self._wait()
            start = time.perf_counter()
            outputs = BACKENDS[name].run(networks, self._arguments, self._method)
            leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
            if leaves and self._backward:
                torch.autograd.backward(leaves, [torch.ones_like(leaf) for leaf in leaves])
            self._wait()
            return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Within, random numbers are drawn that are drawn again afterwards."""
        states = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
