"""Compiler: what a step computes, by `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


class Compiler:
    """Compiles functions as they come, once it is asked to; until then, and in copies, they are run as they are.

    Attributes:
        options: Options of `torch.compile`; None: nothing is compiled.
    """

    def __init__(self) -> None:
        self.options: dict[str, Any] | None = None
        self._made: dict[Any, Any] = {}

    def __reduce__(self) -> Any:
        return Compiler, ()

    def start(self, options: dict[str, Any]) -> None:
        """Compile from now on."""
        self.options = options
        self._made.clear()

    def __call__(self, function: Function, wanted: bool = True) -> Function:
        """A function of a module, compiled if that was asked for and is wanted here."""
        if self.options is None or not wanted:
            return function
        if function not in self._made:
            # torch counts what it compiles of one code, which would be the same for all targets
            own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__)
            self._made[function] = torch.compile(own, **self.options)
        made: Function = self._made[function]
        return made
