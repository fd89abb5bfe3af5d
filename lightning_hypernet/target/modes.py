"""Modes: evaluation for a while, and training that leaves buffers as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module, mode: bool = False) -> Iterator[None]:
    """Within, the module is in evaluation mode; afterwards each of its modules has its own mode again, frozen ones too."""
    modes = [(one, one.training) for one in module.modules()]
    module.train(mode)
    try:
        yield
    finally:
        for one, mode in modes:
            one.training = mode


@contextmanager
def apart(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within, copies are in the place of the buffers of some modules."""
    own = [(module, dict(module._buffers)) for module in modules]
    for module, buffers in own:
        module._buffers.update({key: None if value is None else value.clone() for key, value in buffers.items()})
    try:
        yield
    finally:
        for module, buffers in own:
            module._buffers.update(buffers)
