"""Averages: what tells a moving average from other buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Tensors = Mapping[str, Tensor]
_EXACT = 1e-3


def other_than(value: Tensor) -> Tensor:
    """Other numbers, at random, above those that are there."""
    return value + 1 + torch.rand_like(value) * (1 + value.abs())


def larger(leaf: Any) -> Any:
    """A tensor of other numbers of the same kind; what holds no numbers with a fraction as it is."""
    return leaf * 1.1 if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def shares_of(
    run: Callable[[Tensors], Tensors],
    elsewhere: Callable[[Tensors], Tensors],
    own: Tensors,
    after: Tensors,
    there: Tensors,
    moved: Tensors,
) -> dict[str, float]:
    """Which buffers are moving averages: they keep a constant share of what they were, and take the rest from the batch.

    An update that starts elsewhere leaves as much of the difference, one that starts at what a batch tends to stays there, and
    with other weights and inputs the share is the same and what they tend to is not.

    Args:
        run: The buffers after a run that starts with some others.
        elsewhere: The same, with other weights and inputs.
        own: Where the buffers stand.
        after: What `run` makes of them.
        there: What `elsewhere` makes of them.
        moved: Other numbers in those that may be averages.

    Returns:
        The share of each average, by name.
    """
    later = run(moved)
    found = {}
    for name, value in moved.items():
        change, distance = later[name] - after[name], value - own[name]
        share = (change / distance).double().mean().item()
        if _EXACT < share < 1 - 1e-5 and keeps(change, distance, share):
            found[name] = share
    if not found:
        return {}
    tends = {name: (after[name] - share * own[name]) / (1 - share) for name, share in found.items()}
    settled, later = run(tends), elsewhere({name: moved[name] for name in found})
    return {
        name: share
        for name, share in found.items()
        if keeps(settled[name] - after[name], tends[name] - own[name], share)
        and keeps(later[name] - there[name], moved[name] - own[name], share)
        and differ((there[name] - share * own[name]) / (1 - share), tends[name])
    }


def keeps(change: Tensor, moved: Tensor, share: float) -> bool:
    """Whether this share of what went in comes out, exactly beside what is not kept."""
    error = (change - share * moved).abs().max().item()
    return error <= (_EXACT * (1 - share) + 1e-6) * moved.abs().max().item()


def alike(one: Tensor | None, other: Tensor) -> bool:
    """Whether both are of one shape and type."""
    return one is not None and one.shape == other.shape and one.dtype == other.dtype


def differ(one: Tensor | None, other: Tensor) -> bool:
    """Whether they differ in shape, type or numbers."""
    return one is None or not alike(one, other) or not torch.equal(one, other)


def outputs_differ(one: Any, other: Any) -> bool:
    """Whether there are tensors in two outputs of one structure that differ."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return any(isinstance(first, Tensor) and differ(first, second) for first, second in pairs)


@contextmanager
def same_random_numbers(seed: int = 0) -> Iterator[None]:
    """Within, the random numbers that were drawn within the last of these of the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
