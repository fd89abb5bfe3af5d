"""Layout: where the batch lies in the arguments of a call, as the user says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_hypernet.target.arguments import ENTRIES, Arguments, usual_axes
from lightning_hypernet.values import guess, whole

BatchDim = int | str | Mapping[str, int | str | None] | None
"""An axis; ``"list"`` for lists of examples; for some arguments, by their name, either of them, or None: all share it."""


def read_batch_dim(batch_dim: Any) -> BatchDim:
    """Where a batch may lie, axes as numbers.

    Raises:
        ValueError: If it does not say so.
    """
    said = dict(batch_dim) if isinstance(batch_dim, Mapping) else {"": batch_dim}
    try:
        read = {name: one if one in (None, "list") else whole("batch_dim", one, 0) for name, one in said.items()}
    except ValueError:
        raise ValueError(
            f"batch_dim must be an axis, 0 or more, 'list', or a mapping of arguments to them, not {batch_dim!r}"
        ) from None
    return read if isinstance(batch_dim, Mapping) else read[""]


def parameters_of(called: Callable[..., Any]) -> list[str]:
    """The names of what is passed by position."""
    if isinstance(called, nn.Module):
        called = called.forward
    try:
        taken = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):
        return []
    return [one.name for one in taken if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]


def laid_out(args: tuple[Any, ...], kwargs: dict[str, Any], batch_dim: BatchDim, called: Callable[..., Any]) -> Arguments:
    """Arguments, the batch where the user says it lies; where nothing is said, along the first axis.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        batch_dim: What the user says.
        called: What they are for.

    Raises:
        ValueError: If the arguments have no such names or axes.
    """
    if batch_dim is None:
        return Arguments(args, kwargs)
    by_name = batch_dim if isinstance(batch_dim, Mapping) else {}
    lists = batch_dim == "list" or "list" in by_name.values()
    plain = Arguments(args, kwargs, lists=lists)
    names = plain.names(parameters_of(called))
    unknown = sorted(set(by_name) - set(names) - set(parameters_of(called)))
    if unknown:
        raise ValueError(
            f"batch_dim names {', '.join(unknown)}, which the target does not take{guess(unknown[0], names)}; it takes "
            f"{', '.join(names)}"
        )
    given: dict[int, int | None] = {}
    for index, (name, leaf) in enumerate(zip(names, plain.leaves, strict=True)):
        said = by_name.get(name, "list" if lists and type(leaf) is list and batch_dim == "list" else 0)
        if type(leaf) is list:
            given[index] = ENTRIES if said == "list" else None
        elif name in by_name:
            if isinstance(said, int) and isinstance(leaf, Tensor) and leaf.ndim <= said:
                raise ValueError(
                    f"batch_dim says that the batch lies along axis {said} of {name!r}, of shape {tuple(leaf.shape)}"
                )
            given[index] = said if isinstance(said, int) and isinstance(leaf, Tensor) else None
    axis = batch_dim if isinstance(batch_dim, int) else 0
    shapes = [tuple(leaf.shape) for leaf in plain.leaves if isinstance(leaf, Tensor)]
    if shapes and all(len(shape) <= axis for shape in shapes) and any(shapes):
        raise ValueError(f"batch_dim says that the batch lies along axis {axis}, and the inputs are {shapes[0]}")
    arguments = Arguments(args, kwargs, axes=usual_axes(plain.leaves, axis, given), lists=lists)
    arguments.said = frozenset(given)
    return arguments
