"""Averages: what tells a moving average from other buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Tensors = Mapping[str, Tensor]
_EXACT = 1e-3
_FAR = 1000


def other_than(value: Tensor) -> Tensor:
    """Other numbers, at random, above those that are there."""
    return value + 1 + torch.rand_like(value) * (1 + value.abs())


def far_from(value: Tensor) -> Tensor:
    """What a counter or a flag may be later."""
    return ~value if value.dtype == torch.bool else value + _FAR


def smaller(leaf: Any) -> Any:
    """A tensor of other numbers of the same kind, shares and codes too; what holds no numbers with a fraction as it is."""
    return leaf * 0.9 if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


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
    """Whether they differ in shape, type or numbers; what is not a number in both does not."""
    if one is None or not alike(one, other):
        return True
    if torch.equal(one, other):
        return False
    if not one.is_floating_point() or one.element_size() < 2:
        return True
    return not ((one == other) | (one.isnan() & other.isnan())).all().item()


def outputs_differ(one: Any, other: Any) -> bool:
    """Whether two outputs differ in their structure, or in one of their tensors."""
    first, second = tree_leaves(one), tree_leaves(other)
    if [isinstance(leaf, Tensor) for leaf in first] != [isinstance(leaf, Tensor) for leaf in second]:
        return True
    return any(isinstance(leaf, Tensor) and differ(leaf, twin) for leaf, twin in zip(first, second, strict=True))


def beside_buffers(run: Callable[[Tensors, Sequence[bool], list[Any]], dict[str, Tensor]]) -> list[str] | None:
    """What depends on anything that a module keeps from run to run beside its buffers.

    Args:
        run: The buffers after runs in training mode or not, which start with some; it appends what comes out of each.

    Returns:
        The names of the buffers that do, none if only the output of evaluation does; None: nothing does, or all depends on
        random numbers of the module's own.
    """
    modes, outputs, kept = (True, True, False), list[list[Any]](), list[dict[str, Tensor]]()
    for apart in (False, False, True):
        out: list[Any] = []
        buffers: dict[str, Tensor] = {}
        with same_random_numbers():
            for some in [(mode,) for mode in modes] if apart else [modes]:
                buffers = run(buffers, some, out)
        outputs.append(out[-1])
        kept.append(buffers)
    once, again, without = ((out, [one[name] for name in kept[0]]) for out, one in zip(outputs, kept, strict=True))
    if outputs_differ(once, again) or not outputs_differ(once, without):
        return None
    return [name for name, value in kept[0].items() if differ(kept[-1].get(name), value)]


@contextmanager
def same_random_numbers(seed: int = 0) -> Iterator[None]:
    """Within, the random numbers that were drawn within the last of these of the seed."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield
