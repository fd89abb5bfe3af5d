"""Trial: a call beside the real one, of which nobody sees anything."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.backends import BACKENDS
from lightning_hypernet.target.networks import Networks


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
        self._method, self._arguments = method, arguments
        self._backward = torch.is_grad_enabled() and networks.recorded
        self._weights = {name: value[: self.count].detach() for name, value in networks.weights.items()}
        self._given = {name: value[: self.count] for name, value in networks.buffers.items()}
        self._replicas = networks.replicas.aside()

    def seconds(self, name: str) -> float:
        """How long one backend takes, forward and, with gradients, backward."""
        weights = {key: value.clone().requires_grad_(self._backward) for key, value in self._weights.items()}
        networks = Networks(self._replicas, weights, self._given)
        arguments = self._arguments.detached()
        held = networks.hold(self.count if name == "loop" else 1)
        with self._aside(held[0].outside):
            self._wait()
            start = time.perf_counter()
            outputs = BACKENDS[name].run(networks, arguments, self._method)
            leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
            if leaves and self._backward:
                ones = [torch.ones_like(leaf) for leaf in leaves]
                torch.autograd.grad(leaves, list(weights.values()), ones, allow_unused=True)
            self._wait()
            return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()

    @contextmanager
    def _aside(self, outside: list[Any]) -> Iterator[None]:
        """Within, random numbers are drawn that are drawn again afterwards; what the target refers to is put back."""
        states = [(source, _state_of(source)) for source in (random, np.random, *outside)]
        try:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                yield
        finally:
            for source, state in states:
                _put_back(source, state)


def _state_of(source: Any) -> Any:
    """The state of a source of random numbers, or the buffers of a module."""
    if isinstance(source, nn.Module):
        return [(buffer, buffer.clone()) for buffer in source.buffers()]
    if isinstance(source, np.random.Generator):
        return source.bit_generator.state
    if source is np.random or isinstance(source, (np.random.RandomState, torch.Generator)):
        return source.get_state()
    return source.getstate()


def _put_back(source: Any, state: Any) -> None:
    if isinstance(source, nn.Module):
        with torch.no_grad():
            for buffer, value in state:
                buffer.copy_(value)
    elif isinstance(source, np.random.Generator):
        source.bit_generator.state = state
    elif source is np.random or isinstance(source, (np.random.RandomState, torch.Generator)):
        source.set_state(state)
    else:
        source.setstate(state)
