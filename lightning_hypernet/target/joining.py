"""Joining: one output from those of several networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Path = tuple[Any, ...]
PLAIN = (type(None), bool, int, float, str)


class PerNetwork(list[Any]):
    """What each network made, in a list, where the shapes differ."""


@dataclass(frozen=True)
class Following:
    """How a part of an output follows the batch.

    Args:
        axis: The axis of a tensor along which it grows with the batch; None: it is a list, which has an entry for each example.
        factor: Entries for each example.
        blocked: Whether entries come in blocks that hold every example once, as after ``torch.cat([x, x])``, and not example by
            example.
    """

    axis: int | None
    factor: int = 1
    blocked: bool = False


def children(value: Any) -> tuple[list[Any], list[Any], Callable[[list[Any]], Any]] | None:
    """The keys and entries of a container, and what builds another of its kind; None for a leaf.

    A `Mapping` has its own keys, whatever their order; another container is numbered.
    """
    if isinstance(value, (Tensor, *PLAIN)):
        return None
    entries, spec = tree_flatten(value, is_leaf=lambda one: one is not value)
    if len(entries) == 1 and entries[0] is value:
        return None
    keys = list(value) if isinstance(value, Mapping) and len(value) == len(entries) else list(range(len(entries)))
    return keys, entries, lambda built: tree_unflatten(built, spec)


def walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf of an output, and every list in it, by the keys that lead there."""
    parts = children(value)
    if parts is None or type(value) is list:
        yield path, value
    if parts is not None:
        for key, entry in zip(parts[0], parts[1], strict=True):
            yield from walk(entry, (*path, key))


def merge(
    values: Sequence[Any],
    tensors: Callable[[Path, Sequence[Tensor]], Any],
    others: Callable[[Path, Sequence[Any]], Any],
    lists: Callable[[Path, Sequence[list[Any]]], Any],
    path: Path = (),
) -> Any:
    """Merge the outputs of networks leaf by leaf, mappings by their keys.

    Args:
        values: The output of every network.
        tensors: Merges tensors.
        others: Merges plain values.
        lists: Merges lists as a whole; `NotImplemented`: entry by entry.
        path: Where the values stand in the whole output.

    Raises:
        TypeError: If outputs differ in their structure, or hold what can't be looked into.
    """
    if all(isinstance(value, Tensor) for value in values):
        return tensors(path, values)
    if all(isinstance(value, PLAIN) for value in values):
        return others(path, values)
    if all(type(value) is list for value in values):
        whole = lists(path, values)
        if whole is not NotImplemented:
            return whole
    parts = [children(value) for value in values]
    if any(part is None for part in parts):
        raise TypeError(_opaque(path, values))
    keys, _, build = parts[0]  # type: ignore[misc]
    entries = [dict(zip(part[0], part[1], strict=True)) for part in parts if part is not None]
    if any(set(one) != set(keys) for one in entries):
        found = "; ".join(sorted({", ".join(map(str, one)) for one in entries}))
        raise TypeError(f"the networks return outputs of different structure{place_of(path)}: {found}")
    merged = [merge([one[key] for one in entries], tensors, others, lists, (*path, key)) for key in keys]
    return build(merged)


def _opaque(path: Path, values: Sequence[Any]) -> str:
    kinds = sorted({type(value).__name__ for value in values})
    cache = "; a cache is not returned with use_cache=False" if any("Cache" in kind for kind in kinds) else ""
    return (
        f"the target returns {', '.join(kinds)}{place_of(path)}, whose tensors can't be joined; return tensors, tuples or "
        f"dicts, or register the class with torch.utils._pytree.register_pytree_node{cache}"
    )


def place_of(path: Path) -> str:
    """Where something stands in an output, in words."""
    return f" at output{''.join(f'[{key!r}]' for key in path)}" if path else ""


def join(outputs: Sequence[Any], sizes: Sequence[int], rules: Mapping[Path, Following | None], constant: set[Path]) -> Any:
    """One output in the order of the batch, from those of networks that had a part each.

    What follows the batch is concatenated. Other real numbers are averaged, weighted by the sizes of the parts, which is right
    for means over the batch, not for sums.

    Args:
        outputs: The output of every network.
        sizes: The sizes of their parts.
        rules: For every leaf and list how it follows the batch; None: it does not.
        constant: The leaves that are the same whatever the batch.

    Raises:
        TypeError: If outputs can't be joined.
    """

    def tensors(path: Path, leaves: Sequence[Tensor]) -> Tensor:
        rule = rules.get(path)
        if rule is not None and rule.axis is not None:
            if rule.blocked:
                return torch.cat([leaf.unflatten(rule.axis, (rule.factor, -1)) for leaf in leaves], rule.axis + 1).flatten(
                    rule.axis, rule.axis + 1
                )
            return torch.cat(list(leaves), dim=rule.axis)
        if any(leaf.shape != leaves[0].shape for leaf in leaves):
            shapes = ", ".join(sorted({str(tuple(leaf.shape)) for leaf in leaves}))
            raise TypeError(f"outputs{place_of(path)} have the shapes {shapes}, which follow no batch; {BATCH}")
        if leaves[0].is_floating_point() or leaves[0].is_complex():
            return _average(leaves, sizes)
        if path not in constant or any(not torch.equal(leaf, leaves[0]) for leaf in leaves):
            raise TypeError(_count(path))
        return leaves[0]

    def others(path: Path, values: Sequence[Any]) -> Any:
        if all(type(value) is float for value in values):
            return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)
        if any(type(value) is not type(values[0]) or value != values[0] for value in values) or (
            type(values[0]) is int and path not in constant
        ):
            raise TypeError(_count(path))
        return values[0]

    def lists(path: Path, values: Sequence[list[Any]]) -> Any:
        if rules.get(path) is not None:
            return [entry for value in values for entry in value]
        return NotImplemented

    return merge(outputs, tensors, others, lists)


BATCH = "with deal='batch' the callback deals the batch out before training_step, which each network then runs by itself"


def _count(path: Path) -> str:
    return (
        f"the networks return whole numbers or plain values{place_of(path)} that are no single value of the batch, and each "
        f"has seen a part of it alone: return one for each example, or a mean; {BATCH}"
    )


def _average(leaves: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    shares = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    stacked = torch.stack(list(leaves))
    return (shares.to(stacked).view(-1, *(1,) * (stacked.ndim - 1)) * stacked).sum(0)


def stack(outputs: Sequence[Any]) -> Any:
    """Stack the outputs of networks that saw the same inputs: every tensor gets a leading axis ``(S, ...)``.

    Tensors whose shapes differ, and lists whose lengths do, become a `PerNetwork`; a plain value is that of the first.
    """

    def tensors(_: Path, leaves: Sequence[Tensor]) -> Any:
        alike = all(leaf.shape == leaves[0].shape for leaf in leaves)
        return torch.stack(list(leaves)) if alike else PerNetwork(leaves)

    def lists(_: Path, values: Sequence[list[Any]]) -> Any:
        return NotImplemented if len({len(value) for value in values}) == 1 else PerNetwork(values)

    return merge(outputs, tensors, lambda _, values: values[0], lists)
