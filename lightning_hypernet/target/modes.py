"""Modes: evaluation for a while."""

from __future__ import annotations

from collections.abc import Iterator
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
