"""Values of any kind, compared leaf by leaf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device)


def entries(value: Any) -> list[tuple[Any, Any]] | None:
    """The keys and entries of a container; None for a leaf."""
    if isinstance(value, Mapping):
        return sorted(value.items(), key=lambda item: str(item[0]))
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, (list, tuple)) or type(value).__name__ in ("deque", "PerNetwork"):
        return list(enumerate(value))
    return None


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Every leaf of what a target is given or returns, and the keys that lead to it; mappings in the order of their keys."""
    parts = entries(value)
    if parts is None:
        yield path, value
    for key, entry in parts or ():
        yield from leaves(entry, (*path, key))


def kinds(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, type]]:
    """The class of every container."""
    parts = entries(value)
    if parts is not None:
        yield path, type(value)
    for key, entry in parts or ():
        yield from kinds(entry, (*path, key))


def tensors(value: Any) -> list[Tensor]:
    return [leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor)]


def picture(value: Any, path: tuple = (), seen: dict[int, Any] | None = None) -> Iterator[tuple[tuple, Any]]:
    """Every leaf of an object of any kind, whatever it refers to: modules, containers, plain objects; tensors are cloned."""
    seen = {} if seen is None else seen
    if isinstance(value, Tensor):
        yield path, value.detach().clone()
    elif isinstance(value, PLAIN):
        yield path, value
    elif id(value) in seen:
        return
    else:
        seen[id(value)] = value
        parts = entries(value.state_dict() if isinstance(value, torch.jit.ScriptModule) else value)
        if parts is None and (isinstance(value, nn.Module) or not callable(value)):
            held = getattr(value, "__dict__", None)
            parts = None if held is None else [(key, one) for key, one in held.items() if key != "training"]
        if parts is None:
            yield path, value if callable(value) else repr(value)
        for key, entry in parts or ():
            yield from picture(entry, (*path, key), seen)


def same(one: Any, other: Any, tolerance: float = 0.0, of: Any = leaves) -> None:
    """Assert that two values have the same leaves in the same places, numbers up to a tolerance relative to the largest."""
    first, second = dict(of(one)), dict(of(other))
    assert first.keys() == second.keys(), f"structures differ: {list(first)} and {list(second)}"
    for path, ours in first.items():
        theirs = second[path]
        if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
            assert ours is theirs or (isinstance(ours, PLAIN) and ours == theirs), f"{path}: {ours!r} and {theirs!r}"
            continue
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), f"{path}: {ours.shape} and {theirs.shape}"
        if tolerance and (ours.is_floating_point() or ours.is_complex()):
            size = theirs.detach().abs().nan_to_num(0.0, 0.0, 0.0).max().item() if theirs.numel() else 0.0
            close = torch.allclose(ours, theirs, rtol=0, atol=tolerance * (1 + size), equal_nan=True)
        else:
            close = (
                torch.equal(ours.nan_to_num(), theirs.nan_to_num()) if ours.is_floating_point() else torch.equal(ours, theirs)
            )
        assert close, f"{path} differ by {(ours.double() - theirs.double()).abs().max().item():.2g}" if ours.numel() else path


def equal(one: Any, other: Any) -> bool:
    """Whether two leaves are bit by bit the same."""
    try:
        same({0: one}, {0: other})
    except AssertionError:
        return False
    return True
