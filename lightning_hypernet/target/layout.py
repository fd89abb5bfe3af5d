"""Layout: where the batch lies in the arguments of a call, as the user says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_hypernet.target.arguments import ENTRIES, Arguments, usual_axes

BatchDim = int | str | Mapping[str, int | str | None] | None
"""An axis; ``"list"`` for lists of examples; for some arguments, by their name, either of them, or None: all share it."""


def check_batch_dim(batch_dim: Any) -> None:
    """See that it says where a batch may lie.

    Raises:
        ValueError: If it does not.
    """
    said = batch_dim.values() if isinstance(batch_dim, Mapping) else (batch_dim,)
    for one in said:
        if not (one is None or one == "list" or (isinstance(one, int) and not isinstance(one, bool) and one >= 0)):
            raise ValueError(
                f"batch_dim must be an axis, 0 or more, 'list', or a mapping of arguments to them, not {batch_dim!r}"
            )


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
        raise ValueError(f"batch_dim names {', '.join(unknown)}, which the target does not take; it takes {', '.join(names)}")
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
    arguments = Arguments(args, kwargs, axes=usual_axes(plain.leaves, axis, given), lists=lists)
    arguments.said = frozenset(given)
    return arguments
