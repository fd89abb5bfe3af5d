"""Trial: a call beside the real one, of which nobody sees anything."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.backends import BACKENDS
from lightning_hypernet.target.networks import Networks, call


class Aside:
    """The first of some networks, in a replica aside: hooks, random numbers, buffers and graphs are left alone.

    Args:
        networks: The networks.
        hooks: Whether hooks see it after all.
    """

    def __init__(self, networks: Networks, hooks: bool = False) -> None:
        self._weights = {name: value[:1].detach() for name, value in networks.weights.items()}
        self._given = {name: value[:1] for name, value in networks.buffers.items()}
        self._replicas = networks.replicas.aside(muted=not hooks)
        self.template = networks.replicas.template

    def run(
        self,
        arguments: Arguments,
        method: str,
        training: bool = True,
        before: Callable[[nn.Module], None] | None = None,
    ) -> Any:
        """The output of a call, without gradients.

        Args:
            arguments: The arguments, which all networks share.
            method: What is called.
            training: Whether in the target's present mode, else in evaluation.
            before: Is given the replica before the run.
        """
        weights = {name: value.clone() for name, value in self._weights.items()}
        networks = Networks(self._replicas, weights, self._given)
        (held,) = networks.hold(1)
        for module in held.module.modules() if not training else ():
            module.training = False
        if before is not None:
            before(held.module)
        with torch.no_grad(), aside(held.outside, next(iter(weights.values())).device):
            torch.manual_seed(0)
            args, kwargs = arguments.detached().of(0)
            return call(held.module, method, args, kwargs)

    def shapes(self, arguments: Arguments, method: str, paths: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """The shapes of what some submodules are given first in a call, by their paths."""
        seen: dict[str, tuple[int, ...]] = {}

        def watch(path: str, module: nn.Module) -> None:
            forward = module.forward

            def watched(*args: Any, **kwargs: Any) -> Any:
                first = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
                if first is not None:
                    seen[path] = tuple(first.shape)
                return forward(*args, **kwargs)

            object.__setattr__(module, "forward", watched)

        def watch_all(root: nn.Module) -> None:
            for path in paths:
                watch(path, root.get_submodule(path))

        self.run(arguments, method, before=watch_all)
        return seen


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
        self._seen: dict[str, list[Tensor]] = {}

    def seconds(self, name: str) -> float:
        """How long one backend takes, forward and, with gradients, backward."""
        weights = {key: value.clone().requires_grad_(self._backward) for key, value in self._weights.items()}
        networks = Networks(self._replicas, weights, self._given)
        arguments = self._arguments.detached()
        held = networks.hold(self.count if name == "loop" else 1)
        with aside(held[0].outside, self.device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is worth a warning comes in the real run
            self._wait()
            start = time.perf_counter()
            outputs = BACKENDS[name].run(networks, arguments, self._method)
            leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
            if leaves and self._backward:
                ones = [torch.ones_like(leaf) for leaf in leaves]
                torch.autograd.grad(leaves, list(weights.values()), ones, allow_unused=True)
            self._wait()
            seconds = time.perf_counter() - start
        if name in ("loop", "blocked"):
            self._seen[name] = [leaf.detach() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        return seconds

    def agrees(self, name: str) -> bool:
        """Whether blocks gave what the loop gave; of the other backends that is known."""
        if name != "blocked":
            return True
        pairs = list(zip(self._seen["loop"], self._seen[name], strict=False))
        return len(self._seen["loop"]) == len(self._seen[name]) and all(_alike(one, other) for one, other in pairs)

    def _wait(self) -> None:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs are the same but for rounding."""
    if one.shape != other.shape or not one.is_floating_point():
        return one.shape == other.shape and torch.equal(one, other)
    least = min(1e3 * torch.finfo(one.dtype).eps, 0.02)
    return bool((one - other).abs().amax() <= least * one.abs().amax()) if one.numel() else True


@contextmanager
def aside(outside: list[Any], device: torch.device) -> Iterator[None]:
    """Within, random numbers are drawn that are drawn again afterwards; what the target refers to is put back."""
    states = [(source, _state_of(source)) for source in (random, np.random, *outside)]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for source, state in states:
            _put_back(source, state)


def _state_of(source: Any) -> Any:
    """The state of a source of random numbers, or the buffers of a module, in whose place come copies."""
    if isinstance(source, nn.Module):
        kept = [(module._buffers, key, value) for module in source.modules() for key, value in module._buffers.items()]
        for holder, key, value in kept:
            holder[key] = None if value is None else value.clone()
        return kept
    if isinstance(source, np.random.Generator):
        return source.bit_generator.state
    if source is np.random or isinstance(source, (np.random.RandomState, torch.Generator)):
        return source.get_state()
    return source.getstate()


def _put_back(source: Any, state: Any) -> None:
    if isinstance(source, nn.Module):
        for holder, key, value in state:
            holder[key] = value
    elif isinstance(source, np.random.Generator):
        source.bit_generator.state = state
    elif source is np.random or isinstance(source, (np.random.RandomState, torch.Generator)):
        source.set_state(state)
    else:
        source.setstate(state)
