"""Order: permutations of channels that leave a target's function unchanged, as its graph proposes them.

Next to every activation go the identities of its channels. Every operation that treats channels alike passes them on, layers
write fresh ones, and what meets element by element is one channel. Channels that every parameter holds in the same places are
a block. What the graph can't show (whether a map is read in the same order for all of them, say) a run decides: see
`certificate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.symmetry.graph import Graph, reading
from lightning_hypernet.symmetry.order_rules import PERMUTING
from lightning_hypernet.symmetry.reader import run_shadow
from lightning_hypernet.symmetry.shadow import PINNED, Shadow, compact, thin


@dataclass(frozen=True)
class Axis:
    """Where a parameter holds the channels of a block.

    Args:
        parameter: Name of the parameter.
        dim: The dimension that holds them.
        index: ``(n, m)``, for each of the n channels its m places along that dimension.
    """

    parameter: str
    dim: int
    index: Tensor

    def gather(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The numbers of every channel: ``(S, n, m * rest)``."""
        index = self.index.to(weights[self.parameter].device)
        picked = weights[self.parameter].index_select(self.dim + 1, index.reshape(-1))
        moved = picked.movedim(self.dim + 1, 1)
        return moved.reshape(len(moved), len(index), -1)

    def permute(self, weight: Tensor, order: Tensor) -> Tensor:
        """Put channel ``order[s, i]`` of network s in place i, in a weight ``(S, *shape)``."""
        index = self.index.to(weight.device)
        places = torch.arange(weight.shape[self.dim + 1], device=weight.device).repeat(len(order), 1)
        places[:, index.reshape(-1)] = index[order].reshape(len(order), -1)
        if len(order) == 1:
            return weight.index_select(self.dim + 1, places[0])
        shape = [1] * weight.ndim
        shape[0], shape[self.dim + 1] = places.shape
        return weight.gather(self.dim + 1, places.reshape(shape).expand_as(weight))


@dataclass(frozen=True)
class Block:
    """Channels that may be permuted among each other.

    Args:
        size: n, their number.
        axes: Everything that is permuted along; first where they are written first.
    """

    size: int
    axes: tuple[Axis, ...]

    def permute(self, weights: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
        """Permute every network.

        Args:
            weights: ``{name: (S, *shape)}``; some may be missing.
            order: ``(S, n)``, which channel comes to each place.

        Returns:
            Weights of the same functions.
        """
        permuted = dict(weights)
        for axis in self.axes:
            if axis.parameter in weights:
                permuted[axis.parameter] = axis.permute(permuted[axis.parameter], order)
        return permuted

    def places(self) -> tuple[Any, ...]:
        """Where the channels lie, as it is written."""
        return tuple((axis.parameter, axis.dim, axis.index.shape, axis.index.numpy().tobytes()) for axis in self.axes)

    def channels(self) -> frozenset[frozenset[tuple[str, int, tuple[int, ...]]]]:
        """Where each channel lies, whatever the order of channels and of axes; equal for equal blocks."""
        places = [axis.index.tolist() for axis in self.axes]
        return frozenset(
            frozenset((axis.parameter, axis.dim, tuple(place[channel])) for axis, place in zip(self.axes, places, strict=True))
            for channel in range(self.size)
        )


def propose_blocks(graph: Graph, generated: Sequence[str]) -> list[Block]:
    """Propose blocks of interchangeable channels: those that have the same places in the same parameters.

    References:
        | Git Re-Basin: Merging Models modulo Permutation Symmetries (Ainsworth et al., 2022)
        | https://arxiv.org/abs/2209.04836

    Args:
        graph: The graph of the target.
        generated: Names of the parameters that may be permuted.

    Returns:
        The blocks in topological order.

    Raises:
        SymmetryError: If the graph can't be read.
    """
    shadow = run_shadow(graph, generated, PERMUTING)
    with reading("the order of channels can't be read"):
        return _blocks(shadow)


def blocks_of_both(blocks: Sequence[Block], others: Sequence[Block]) -> list[Block]:
    """The blocks that are among the others too."""
    written = {block.places() for block in others}
    left = [block for block in blocks if block.places() not in written]
    known = {block.channels() for block in others} if left else set()
    return [block for block in blocks if block.places() in written or block.channels() in known]


def _blocks(shadow: Shadow) -> list[Block]:
    """Channels with the same places in the same parameters."""
    label = shadow.labels()
    spread: list[Tensor] = []
    axes: list[tuple[str, int, Tensor]] = []
    for name, use in shadow.uses.items():
        for ids in (use.rows, use.columns):
            roles = compact(thin(torch.where(ids < 0, PINNED, label[ids.clamp(min=0)])))
            varying = [axis for axis, size in enumerate(roles.shape) if size > 1]
            if len(varying) == 1:
                axes.append((name, varying[0], roles.reshape(-1)))
            else:
                spread.append(torch.stack([roles.unique(), roles.unique() * 0]))
    label = shadow.labels(spread)
    held: dict[int, list[tuple[str, int, list[int]]]] = {}
    for name, axis, ids in axes:
        roles = label[ids]
        order = roles.argsort(stable=True)
        found, counts = roles[order].unique_consecutive(return_counts=True)
        where, ends = order.tolist(), [0, *counts.cumsum(0).tolist()]
        for role, first, end in zip(found.tolist(), ends, ends[1:], strict=False):
            if role != PINNED:
                held.setdefault(role, []).append((name, axis, where[first:end]))
    context = _contexts(shadow, label)
    alike: dict[Any, list[int]] = {}
    for role in sorted(held):
        places = tuple([(name, axis, _spacing(each)) for name, axis, each in held[role]])
        alike.setdefault((places, tuple(context.get(role, ()))), []).append(role)
    blocks = []
    for same in alike.values():
        if len(same) > 1:
            slots = range(len(held[same[0]]))
            axes_of = [Axis(*held[same[0]][k][:2], torch.tensor([held[role][k][2] for role in same])) for k in slots]
            blocks.append(Block(len(same), tuple(axes_of)))
    return blocks


def _spacing(places: Sequence[int]) -> tuple[int, ...]:
    """How far places lie behind the first."""
    return (0,) if len(places) == 1 else tuple([place - places[0] for place in places])


def _contexts(shadow: Shadow, label: Tensor) -> dict[int, list[tuple[int, int]]]:
    """For every channel the sets it was taken together in, such as the heads of attention."""
    context: dict[int, list[tuple[int, int]]] = {}
    for number, (_, ids) in enumerate(shadow.together):
        for row, members in enumerate(ids.tolist()):
            for role in {int(label[one]) for one in members}:
                context.setdefault(role, []).append((number, row))
    return context
